"""WeRoBot under Flask, without its session store: checks the signature, echoes the picture, keeps nothing.

https://werobot.readthedocs.io/zh-cn/latest/contrib.html
"""

from flask import Flask
from werobot import WeRoBot
from werobot.contrib.flask import make_view
from werobot.replies import ImageReply

from bench.account import TOKEN

robot = WeRoBot(token=TOKEN, enable_session=False)


@robot.image
def echo(message):
    return ImageReply(message=message, media_id=message.MediaId)


app = Flask(__name__, static_folder=None)
app.add_url_rule("/wechat", endpoint="werobot", view_func=make_view(robot), methods=["GET", "POST"])
