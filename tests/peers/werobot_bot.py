"""A bot made with WeRoBot and nothing else, for the sandbox to judge: `python werobot_bot.py PORT`.

Its account is WECHAT_* of the environment. With a key it seals every answer, so plaintext mode is WECHAT_AES_KEY unset.
"""

import os
import sys

from werobot import WeRoBot
from werobot.replies import ImageReply

robot = WeRoBot(
    token=os.environ["WECHAT_TOKEN"],
    app_id=os.environ["WECHAT_APPID"],
    encoding_aes_key=os.environ.get("WECHAT_AES_KEY"),
    enable_session=False,
)
robot.config["HOST"] = "127.0.0.1"
robot.config["PORT"] = int(sys.argv[1])


@robot.text
def say_it_again(message):
    return message.content


@robot.image
def show_it_again(message):
    return ImageReply(message=message, media_id=message.MediaId)


robot.run()
