"""Replies: every sample rendered byte for byte, read back by ours and by wechatpy, and nothing injected."""

import dataclasses
import re
import warnings
from pathlib import Path

import pytest

from wechat.elements import parse
from wechat.errors import ReplyError, WeChatError
from wechat.messages import SubscribeEvent, TextMessage, parse_message
from wechat.replies import (
    AiTransferReply,
    Article,
    ImageReply,
    MusicReply,
    NewsReply,
    TextReply,
    TransferReply,
    VideoReply,
    VoiceReply,
    parse_reply,
    render_reply,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from wechatpy import replies as wechatpy_replies

SAMPLES = Path(__file__).parent / "samples"
HEAD = {"to_user_name": "gh_5e7a9c1b3d2f", "from_user_name": "oTest-AbCdEfGhIjKlMnOpQrSt_1", "create_time": 1}
MESSAGE = TextMessage(**HEAD, msg_type="text", content="")
EVENT = SubscribeEvent(**HEAD, msg_type="event", event="subscribe")
ARTICLE = Article("headline", "teaser", "https://example.org/p.jpg", "https://example.org/read")

REPLIES = {
    "text": TextReply("line 1\nline 2"),
    "image": ImageReply("fakeImg-MediaId_0001AbCdEf"),
    "voice": VoiceReply("fakeVoice_9001"),
    "video": VideoReply("fakeVideo_9001", "clip", "short text"),
    "music": MusicReply(
        "fakeThumb_9001", "song", "artist", "https://example.org/a.mp3", "https://example.org/a-hq.mp3"
    ),
    "news": NewsReply((ARTICLE,)),
    "transfer-customer-service": TransferReply("kf2001@demo"),
    "transfer-biz-ai-ivr": AiTransferReply(),
}


def sample(name):
    return (SAMPLES / f"reply-{name}.xml").read_bytes()


def test_there_is_a_sample_of_every_kind():
    assert {path.stem.removeprefix("reply-") for path in SAMPLES.glob("reply-*.xml")} == set(REPLIES)


@pytest.mark.parametrize("name", REPLIES)
def test_every_sample_is_rendered_byte_for_byte(name):
    expected = sample(name)
    now = int(parse(expected).findtext("CreateTime"))
    assert render_reply(REPLIES[name], MESSAGE, now) == expected
    assert render_reply(REPLIES[name], EVENT, now) == expected


@pytest.mark.parametrize("name", REPLIES)
def test_names_are_swapped(name):
    root = parse(render_reply(REPLIES[name], MESSAGE, 1760000000))
    assert [child.tag for child in root][:4] == ["ToUserName", "FromUserName", "CreateTime", "MsgType"]
    assert root.findtext("ToUserName") == MESSAGE.from_user_name
    assert root.findtext("FromUserName") == MESSAGE.to_user_name
    assert root.findtext("MsgType") == name.replace("-", "_")


def read_by_wechatpy(reply):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = wechatpy_replies.deserialize_reply(render_reply(reply, EVENT, 7).decode())
    assert (theirs.source, theirs.target, theirs.time) == (EVENT.to_user_name, EVENT.from_user_name, 7)
    return theirs


@pytest.mark.parametrize("name", ["text", "image", "voice", "video", "music"])
def test_wechatpy_reads_the_same(name):
    theirs = read_by_wechatpy(REPLIES[name])
    assert theirs.type == name
    for field in filter(lambda field: field.init, dataclasses.fields(REPLIES[name])):
        assert getattr(theirs, field.name) == getattr(REPLIES[name], field.name)


def test_wechatpy_reads_the_same_articles():
    theirs = read_by_wechatpy(NewsReply((ARTICLE, Article("second"))))  # it cannot read a single one
    assert [(item["title"], item["description"], item["image"], item["url"]) for item in theirs.articles] == [
        ("headline", "teaser", "https://example.org/p.jpg", "https://example.org/read"),
        ("second", None, None, None),
    ]


@pytest.mark.parametrize("name", ["text", "image", "voice", "video", "music", "news"])
def test_what_wechatpy_renders_reads_the_same(name):
    ours = REPLIES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = wechatpy_replies.REPLY_TYPES[name](
            source=MESSAGE.to_user_name, target=MESSAGE.from_user_name
        )
        if name == "news":
            theirs.add_article(
                {
                    "title": ARTICLE.title,
                    "description": ARTICLE.description,
                    "image": ARTICLE.pic_url,
                    "url": ARTICLE.url,
                }
            )
        else:
            for field in dataclasses.fields(ours):
                setattr(theirs, field.name, getattr(ours, field.name))
        theirs.time = 7
        rendered = theirs.render()

    def texts(xml):
        return {
            element.tag: element.text.strip() for element in parse(xml).iter() if (element.text or "").strip()
        }

    assert texts(rendered.encode()) == texts(render_reply(ours, MESSAGE, 7))


EVIL = "]]></Content><MsgType>image</MsgType><Content><![CDATA[ &amp; <b> 🚀 ]]]]>> 你好\ttab\nline"


@pytest.mark.parametrize(
    ("reply", "path"),
    [
        (TextReply(EVIL), "Content"),
        (ImageReply(EVIL), "Image/MediaId"),
        (VoiceReply(EVIL), "Voice/MediaId"),
        (VideoReply(EVIL), "Video/MediaId"),
        (VideoReply("m", title=EVIL), "Video/Title"),
        (VideoReply("m", description=EVIL), "Video/Description"),
        (MusicReply(EVIL), "Music/ThumbMediaId"),
        (MusicReply("m", title=EVIL), "Music/Title"),
        (MusicReply("m", description=EVIL), "Music/Description"),
        (MusicReply("m", music_url=EVIL), "Music/MusicUrl"),
        (MusicReply("m", hq_music_url=EVIL), "Music/HQMusicUrl"),
        (NewsReply((Article(EVIL),)), "Articles/item/Title"),
        (NewsReply((Article("t", EVIL),)), "Articles/item/Description"),
        (NewsReply((Article("t", "", EVIL),)), "Articles/item/PicUrl"),
        (NewsReply((Article("t", "", "", EVIL),)), "Articles/item/Url"),
        (TransferReply(EVIL), "TransInfo/KfAccount"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_value_becomes_xml(reply, path):
    root = parse(render_reply(reply, MESSAGE, 1))
    assert root.findtext(path) == EVIL
    assert len(root.findall("MsgType")) == 1
    assert [child.tag for child in root].count("Content") == (path == "Content")


def test_names_from_the_push_become_no_xml_either():
    fan = parse_message(
        b"<xml><FromUserName>a]]&gt;&lt;b/&gt;</FromUserName><CreateTime>1</CreateTime><MsgType>text</MsgType></xml>"
    )
    root = parse(render_reply(TextReply("x"), fan, 1))
    assert root.findtext("ToUserName") == "a]]><b/>"
    assert root.findtext("FromUserName") == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\x00b\x08c\x0bd\x1fe\ufffe\uffff\ud800f", "abcdef"),
        ("a\r\nb\rc", "a\nb\nc"),
        (" \na ", " \na "),
        ("x" * 2047, "x" * 2047),
        ("x" * 2048, "x" * 2047),
        ("好" * 683, "好" * 682),
        ("xx" + "好" * 682, "xx" + "好" * 681),
        ("🚀" * 512, "🚀" * 511),
        ("x" + "🚀" * 512, "x" + "🚀" * 511),
        ("]]>" * 1000, ("]]>" * 683)[:2047]),
    ],
    ids=range(10),
)
def test_a_text_is_what_the_platform_can_take(text, said):
    reply = TextReply(text)
    assert reply.content == said
    assert len(reply.content.encode()) <= 2047
    assert parse(render_reply(reply, MESSAGE, 1)).findtext("Content") == said


@pytest.mark.parametrize(
    ("text", "cut_from"),
    [("x" * 2047, None), ("x" * 2048, 2048), ("好" * 700, 2100), ("\0" * 3000 + "x", None)],
)
def test_a_cut_is_told(text, cut_from):
    assert TextReply(text).cut_from == cut_from


def test_what_is_left_out():
    bare = parse(render_reply(MusicReply(title="t"), MESSAGE, 1)).find("Music")
    assert [child.tag for child in bare] == ["Title"]
    assert parse_reply(render_reply(MusicReply(title="t"), MESSAGE, 1)) == MusicReply(title="t")
    assert parse(render_reply(VideoReply("m"), MESSAGE, 1)).find("Video/Title") is None
    assert [child.tag for child in parse(render_reply(MusicReply("m"), MESSAGE, 1)).find("Music")] == [
        "ThumbMediaId"
    ]
    assert parse(render_reply(TransferReply(), MESSAGE, 1)).find("TransInfo") is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: TextReply(""),
        lambda: TextReply("\x00\x1f\ud800"),
        lambda: TextReply(" \n\u3000"),
        lambda: TextReply(None),
        lambda: ImageReply(""),
        lambda: ImageReply(None),
        lambda: VoiceReply("\x00"),
        lambda: VideoReply(""),
        lambda: MusicReply("", title="t"),
        lambda: MusicReply(),
        lambda: Article(""),
        lambda: TransferReply(""),
        lambda: NewsReply(()),
        lambda: NewsReply((ARTICLE,) * 9),
    ],
)
def test_an_impossible_reply_cannot_be_built(build):
    with pytest.raises(ReplyError) as refused:
        build()
    assert isinstance(refused.value, WeChatError)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TextReply(5), "TextReply needs text for content, not 5"),
        (lambda: ImageReply(b"M"), "ImageReply needs text for media_id, not b'M'"),
        (lambda: VideoReply("M", 5), "VideoReply needs text for title, not 5"),
        (lambda: MusicReply(music_url=Path("a.mp3")), "MusicReply needs text for music_url, not "),
        (lambda: TransferReply(7), "TransferReply needs text for kf_account, not 7"),
        (lambda: Article("t", url=None), "Article needs text for url, not None"),
        (lambda: NewsReply(ARTICLE), "a news reply needs a tuple of Article, not Article("),
        (lambda: NewsReply(({"title": "t"},)), "a news reply needs a tuple of Article, not "),
    ],
)
def test_a_value_of_another_type_is_named_when_the_reply_is_built(build, said):
    with pytest.raises(ReplyError, match=re.escape(said)):
        build()


def test_one_article_after_a_message_and_eight_after_an_event():
    eight = NewsReply((ARTICLE,) * 8)
    root = parse(render_reply(eight, EVENT, 1))
    assert root.findtext("ArticleCount") == "8"
    assert len(root.findall("Articles/item")) == 8
    with pytest.raises(ReplyError, match="leave out 7"):
        render_reply(eight, MESSAGE, 1)


def test_replies_are_values():
    assert TextReply("a") == TextReply("a\x00")
    assert len({ImageReply("m"), ImageReply("m"), VoiceReply("m")}) == 2
    for reply in REPLIES.values():
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
            reply.media_id = "x"


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_read_back_as_it_was(name):
    assert parse_reply(render_reply(REPLIES[name], EVENT, 1)) == REPLIES[name]


def test_a_video_without_words_and_a_transfer_to_anybody_are_read_back_too():
    for bare in (VideoReply("V"), TransferReply(), MusicReply("T")):
        assert parse_reply(render_reply(bare, MESSAGE, 1)) == bare


@pytest.mark.parametrize("xml", [b"<xml/>", b"<xml><MsgType>hologram</MsgType></xml>", b"success", b""])
def test_other_xml_is_no_reply(xml):
    with pytest.raises(WeChatError):
        parse_reply(xml)


@pytest.mark.parametrize("reply", ["hello", None, b"<xml/>", TextReply])
def test_what_is_no_reply_says_what_to_write(reply):
    with pytest.raises(ReplyError, match=r"is no reply: write TextReply\(...\)"):
        render_reply(reply, MESSAGE, 1)


def test_the_time_may_be_that_of_the_clock():
    assert render_reply(TextReply("x"), MESSAGE, 9.9) == render_reply(TextReply("x"), MESSAGE, 9)
