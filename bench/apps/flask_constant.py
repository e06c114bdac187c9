"""Flask's own price: a view that reads the body and answers a constant."""

from flask import Flask, Response, request

app = Flask(__name__, static_folder=None)


@app.post("/wechat")
def receive():
    request.get_data()
    return Response(b"success", mimetype="text/plain")
