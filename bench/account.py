"""The account that every contestant serves. Its secrets are made up and public."""

APPID = "wx0123456789abcdef"
APPSECRET = "0123456789abcdef0123456789abcdef"
TOKEN = "ATokenForTheBench"
AES_KEY = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"
ORIGINAL_ID = "gh_0123456789ab"
