"""Words of the formats that are fuzzed: XML, JSON, HTTP headers, media files.

Mutations insert them, because chance alone would rarely write them. It knows no target.
"""

WORDS: tuple[bytes, ...] = tuple(
    b"""<xml> </xml> <![CDATA[ ]]> <!DOCTYPE <!ENTITY &lt; &#0; <!-- --> <?xml ToUserName FromUserName CreateTime
    MsgType MsgId MsgID Event EventKey MediaId Encrypt Content text image voice video shortvideo location link event subscribe
    SCAN LOCATION VIEW pic_weixin scancode_push location_select 9223372036854775808 18446744073709551616 -1 1e999 nan
    signature= timestamp= nonce= msg_signature= encrypt_type=aes echostr= { } [ ] : "errcode" "errmsg" "access_token"
    "expires_in" "video_url" "media_id" null true 40001 gzip deflate br chunked attachment; filename= image/jpeg
    application/json text/plain #!AMR OggS ftyp GIF89a ID3 bytes=0- ../ %00 %2e%2e/ password= before= fan= day= kind= state=
    Bearer gallery=""".split()
) + (
    b"\x00",
    b"\xff\xff\xff\xff",
    b"\r\n",
    b"\n",
    b"\xef\xbb\xbf",
    b"\x89PNG\r\n\x1a\n",
    b"Speex   ",
    b"\xed\xa0\x80",
)
