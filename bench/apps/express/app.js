// npm wechat under express, plain mode, in processes of node's cluster: checks the signature, echoes the picture, keeps
// nothing.
//
// https://github.com/node-webot/wechat

const cluster = require("node:cluster");
const express = require("express");
const wechat = require("wechat");

const { PORT, PROCESSES, WECHAT_TOKEN } = process.env;

if (cluster.isPrimary) {
  for (let number = 0; number < Number(PROCESSES); number += 1) cluster.fork();
} else {
  const app = express();
  app.use(
    "/wechat",
    wechat(WECHAT_TOKEN, (request, response) => {
      response.reply({ type: "image", content: { mediaId: request.weixin.MediaId } });
    }),
  );
  app.listen(Number(PORT), "127.0.0.1");
}
