"""parse_message: every sample, what is tolerated, what is refused, and the keys that the ledger stands on."""

import contextlib
import dataclasses
import hashlib
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from wechat.errors import DoctypeError, UnreadablePushError
from wechat.messages import (
    ClickEvent,
    Event,
    FileMessage,
    ImageMessage,
    LinkMessage,
    LocationEvent,
    LocationMessage,
    LocationSelectEvent,
    Message,
    MiniProgramPageMessage,
    OtherEvent,
    PicEvent,
    ScanCodeEvent,
    ScanEvent,
    ShortVideoMessage,
    SubscribeEvent,
    TextMessage,
    UnknownMessage,
    UnsubscribeEvent,
    VideoMessage,
    ViewEvent,
    ViewMiniProgramEvent,
    VoiceMessage,
    parse_message,
)

SAMPLES = Path(__file__).parent / "samples"
PUSHES = sorted(path.stem for path in SAMPLES.glob("*.xml") if not path.stem.startswith("reply-"))
FAN, ACCOUNT = "oTest-AbCdEfGhIjKlMnOpQrSt_1", "gh_5e7a9c1b3d2f"


def sample(name):
    return (SAMPLES / f"{name}.xml").read_bytes()


def push(inner="", msg_type="text", **head):
    elements = {
        "ToUserName": "gh",
        "FromUserName": "o",
        "CreateTime": "1760000000",
        "MsgType": msg_type,
        **head,
    }
    common = "".join(f"<{name}>{value}</{name}>" for name, value in elements.items() if value is not None)
    return f"<xml>{common}{inner}</xml>".encode()


def event(name, inner=""):
    return push(f"<Event>{name}</Event>{inner}", "event")


# The class of each sample, and its own fields.
KINDS = {
    "message-text": (TextMessage, {"content": "How do I reset my password?", "biz_msg_menu_id": None}),
    "message-text-from-article": (
        TextMessage,
        {"content": "good article", "msg_data_id": "2247483999", "idx": 1},
    ),
    "message-text-menu-choice": (TextMessage, {"content": "是", "biz_msg_menu_id": "7"}),
    "message-image": (
        ImageMessage,
        {
            "media_id": "fakeImg-MediaId_0001AbCdEf",
            "media_kind": "image",
            "pic_url": "http://mmbiz.qpic.cn/mmbiz_jpg/FAKEfakeFAKE/0",
        },
    ),
    "message-voice": (
        VoiceMessage,
        {
            "media_id": "fakeVoice-8k_0001",
            "media_kind": "voice",
            "format": "amr",
            "media_id_16k": "fakeVoice-16k_0001",
            "recognition": None,
        },
    ),
    "message-voice-recognition": (
        VoiceMessage,
        {"media_id": "fakeVoice-8k_0002", "media_id_16k": None, "recognition": "今天天气怎么样"},
    ),
    "message-video": (
        VideoMessage,
        {"media_id": "fakeVideo_0001", "media_kind": "video", "thumb_media_id": "fakeThumb_0001"},
    ),
    "message-shortvideo": (
        ShortVideoMessage,
        {"media_id": "fakeShort_0001", "media_kind": "video", "thumb_media_id": "fakeThumb_0002"},
    ),
    "message-location": (
        LocationMessage,
        {
            "location_x": 31.230416,
            "location_y": 121.473701,
            "scale": 16,
            "label": "上海市黄浦区测试路 1 号",
            "media_id": None,
        },
    ),
    "message-link": (
        LinkMessage,
        {
            "title": "A shared page",
            "description": "two lines about it",
            "url": "https://example.org/page?a=1&b=2",
        },
    ),
    "message-file": (
        FileMessage,
        {
            "title": "report.pdf",
            "description": "",
            "file_key": "fakeFileKey0001",
            "file_md5": "d41d8cd98f00b204e9800998ecf8427e",
            "file_total_len": 20480,
            "media_id": None,
        },
    ),
    "message-miniprogrampage": (
        MiniProgramPageMessage,
        {
            "title": "Demo",
            "app_id": "wx0000000000000001",
            "page_path": "pages/index?x=1",
            "thumb_url": "https://example.org/t.jpg",
            "thumb_media_id": "fakeThumb_0003",
            "media_id": None,
        },
    ),
    "event-subscribe": (SubscribeEvent, {"event": "subscribe", "event_key": "", "ticket": None}),
    "event-subscribe-qrcode": (
        SubscribeEvent,
        {"event_key": "qrscene_invite-42", "ticket": "gQFakeTicket0001=="},
    ),
    "event-unsubscribe": (UnsubscribeEvent, {"event": "unsubscribe"}),
    "event-scan": (
        ScanEvent,
        {"event": "SCAN", "event_key": "invite-42", "ticket": "gQFakeTicket0001=="},
    ),
    "event-location": (
        LocationEvent,
        {"event": "LOCATION", "latitude": 31.230416, "longitude": 121.473701, "precision": 35.0},
    ),
    "event-click": (ClickEvent, {"event": "CLICK", "event_key": "MENU_HELP"}),
    "event-view": (ViewEvent, {"event_key": "https://example.org/home", "menu_id": 410000001}),
    "event-scancode-push": (
        ScanCodeEvent,
        {"event_key": "MENU_SCAN", "scan_type": "qrcode", "scan_result": "https://example.org/q/7"},
    ),
    "event-scancode-waitmsg": (ScanCodeEvent, {"event": "scancode_waitmsg", "scan_result": "ORDER-0007"}),
    "event-pic-sysphoto": (
        PicEvent,
        {"event_key": "MENU_CAM", "count": 1, "pic_md5_sums": ("0cc175b9c0f1b6a831c399e269772661",)},
    ),
    "event-pic-photo-or-album": (
        PicEvent,
        {
            "count": 2,
            "pic_md5_sums": ("0cc175b9c0f1b6a831c399e269772661", "92eb5ffee6ae2fec3ad71c777531578f"),
        },
    ),
    "event-pic-weixin": (PicEvent, {"event": "pic_weixin", "count": 1}),
    "event-location-select": (
        LocationSelectEvent,
        {
            "event_key": "MENU_LOC",
            "location_x": 31.2304,
            "location_y": 121.4737,
            "scale": 15,
            "label": "上海市测试路 1 号",
            "poi_name": "",
        },
    ),
    "event-view-miniprogram": (
        ViewMiniProgramEvent,
        {"event_key": "pages/index/index", "menu_id": 410000002},
    ),
}


@pytest.mark.parametrize("name", PUSHES)
def test_every_sample(name):
    xml = sample(name)
    message = parse_message(xml)
    kind, fields = KINDS.get(name, (OtherEvent, {}))
    assert type(message) is kind
    assert {field: getattr(message, field) for field in fields} == fields
    assert message.raw == xml
    assert message.to_user_name == ACCOUNT
    assert message.from_user_name.startswith("oTest-")
    assert 1760000000 < message.create_time < 1760005000
    assert message.msg_type == ("event" if name.startswith("event-") else name.split("-")[1])
    if name.startswith("message-"):
        assert 24601000000000100 < message.msg_id < 24601000000000200


def test_there_is_a_sample_of_every_kind():
    ours = {kind.__name__ for kind, _ in KINDS.values()} | {"OtherEvent", "UnknownMessage", "Event"}
    assert ours == {kind.__name__ for kind in Message.__subclasses__() + Event.__subclasses__()}
    assert set(KINDS) < set(PUSHES)


def test_other_events_keep_their_elements():
    mass = parse_message(sample("event-masssendjobfinish"))
    assert (mass.event, mass.event_key, mass.msg_id) == ("MASSSENDJOBFINISH", "", 1000000077)
    assert mass.elements["Status"] == "send success"
    assert mass.elements["MsgID"] == "1000000077"
    assert mass.elements["CopyrightCheckResult"]["ResultList"]["item"]["AuditState"] == "2"
    assert not {"ToUserName", "FromUserName", "CreateTime", "MsgType", "Event"} & set(mass.elements)

    popup = parse_message(sample("event-subscribe-msg-popup-event")).elements["SubscribeMsgPopupEvent"][
        "List"
    ]
    assert [entry["SubscribeStatusString"] for entry in popup] == ["accept", "reject"]
    change = parse_message(sample("event-subscribe-msg-change-event")).elements["SubscribeMsgChangeEvent"][
        "List"
    ]
    assert change == {"TemplateId": "fakeTpl01", "SubscribeStatusString": "reject"}
    assert parse_message(sample("event-debug-demo")).elements == {"debug_str": "hello world"}


def test_nothing_of_a_message_can_be_changed():
    message = parse_message(sample("event-masssendjobfinish"))
    with pytest.raises(TypeError):
        message.elements["Status"] = "x"
    with pytest.raises(TypeError):
        message.elements["CopyrightCheckResult"]["Count"] = "x"
    for name in PUSHES:
        message = parse_message(sample(name))
        hash(message)
        with pytest.raises(dataclasses.FrozenInstanceError):
            message.from_user_name = "x"


@pytest.mark.parametrize("name", PUSHES)
def test_layout_and_order_do_not_matter(name):
    xml = sample(name).decode()
    spread = re.sub(r"(</\w+>|<xml>)", r"\1\n  <!-- ? -->", xml)
    assert dataclasses.replace(parse_message(("\ufeff" + spread).encode()), raw=b"") == dataclasses.replace(
        parse_message(xml.encode()), raw=b""
    )


def test_order_and_bare_text_do_not_matter():
    turned = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<xml><MsgId> 24601000000000104 </MsgId>\n'
        "<MediaId>\n fakeImg-MediaId_0001AbCdEf </MediaId><MsgType> image\n</MsgType><PicUrl>"
        "http://mmbiz.qpic.cn/mmbiz_jpg/FAKEfakeFAKE/0</PicUrl><CreateTime><![CDATA[1760000340]]></CreateTime>"
        f"<FromUserName> {FAN} </FromUserName><ToUserName>\t{ACCOUNT}</ToUserName></xml>\n"
    )
    assert dataclasses.replace(parse_message(turned.encode()), raw=b"") == dataclasses.replace(
        parse_message(sample("message-image")), raw=b""
    )


def test_a_text_keeps_its_white_space():
    message = parse_message(push("<Content>  a\n b  </Content>"))
    assert message.content == "  a\n b  "


@pytest.mark.parametrize(
    ("xml", "kind"),
    [
        (push(), TextMessage),
        (push("<Content/>"), TextMessage),
        (push("<MediaId>m</MediaId>", "image"), ImageMessage),
        (push("<MediaId>m</MediaId>", "voice"), VoiceMessage),
        (push("<MediaId>m</MediaId><ThumbMediaId/>", "video"), VideoMessage),
        (push("<MediaId>m</MediaId>", "shortvideo"), ShortVideoMessage),
        (push("<Location_X>-1</Location_X><Location_Y>2</Location_Y><Scale/>", "location"), LocationMessage),
        (push("<Title/>", "link"), LinkMessage),
        (push("", "file"), FileMessage),
        (push("", "miniprogrampage"), MiniProgramPageMessage),
        (event("subscribe", "<EventKey></EventKey>"), SubscribeEvent),
        (event("scan"), ScanEvent),
        (event("Location", "<Latitude>1</Latitude><Longitude>2</Longitude>"), LocationEvent),
        (event("click"), ClickEvent),
        (event("View"), ViewEvent),
        (event("VIEW_miniprogram"), ViewMiniProgramEvent),
        (event("scancode_push", "<ScanCodeInfo/>"), ScanCodeEvent),
        (event("pic_weixin", "<SendPicsInfo/>"), PicEvent),
        (
            event(
                "location_select",
                "<SendLocationInfo><Location_X>1</Location_X><Location_Y>2</Location_Y></SendLocationInfo>",
            ),
            LocationSelectEvent,
        ),
    ],
)
def test_what_is_optional_may_be_missing(xml, kind):
    message = parse_message(xml)
    assert type(message) is kind
    assert message.msg_id is None


@pytest.mark.parametrize(
    ("msg_type", "inner"),
    [
        ("image", ""),
        ("image", "<MediaId> </MediaId>"),
        ("voice", "<MediaID>m</MediaID>"),
        ("video", "<media_id>m</media_id>"),
        ("shortvideo", "<MediaId><a>m</a></MediaId>"),
        ("location", "<Location_X>abc</Location_X><Location_Y>1</Location_Y>"),
        ("location", "<Location_X>nan</Location_X><Location_Y>1</Location_Y>"),
        ("location", f"<Location_X>{'9' * 999}</Location_X><Location_Y>1</Location_Y>"),
        ("location", "<Location_X>1</Location_X>"),
        ("location", "<Location_X>1</Location_X><Location_Y>1</Location_Y><Scale>big</Scale>"),
        ("file", "<FileTotalLen>-1</FileTotalLen>"),
        ("TEXT", "<Content>a</Content>"),
        ("LOCATION", "<Location_X>1</Location_X><Location_Y>1</Location_Y>"),
        ("hologram", "<MediaId>m</MediaId>"),
        ("device_text", "<Content>a</Content>"),
    ],
)
def test_a_message_that_is_not_what_it_says_is_kept_whole(msg_type, inner):
    xml = push(f"{inner}<MsgId>7</MsgId>", msg_type)
    message = parse_message(xml)
    assert type(message) is UnknownMessage
    assert (message.msg_type, message.msg_id, message.raw) == (msg_type, 7, xml)
    assert (message.media_id, message.media_kind) == (None, None)


@pytest.mark.parametrize(
    ("name", "inner", "elements"),
    [
        ("LOCATION", "<Latitude>x</Latitude>", {"Latitude": "x"}),
        ("LOCATION", "<Latitude>1</Latitude><Longitude>2</Longitude><Precision>x</Precision>", None),
        ("VIEW", "<MenuId>x</MenuId>", {"MenuId": "x"}),
        ("view_miniprogram", "<MenuId>x</MenuId>", {"MenuId": "x"}),
        ("scancode_push", "", {}),
        ("pic_sysphoto", "<EventKey>k</EventKey>", {"EventKey": "k"}),
        ("pic_sysphoto", "<SendPicsInfo><Count>x</Count></SendPicsInfo>", {"SendPicsInfo": {"Count": "x"}}),
        ("location_select", "<SendLocationInfo/>", {"SendLocationInfo": ""}),
        ("", "", {}),
        ("tomorrow", "<A>1</A><B/><A>2</A><A><C>3</C></A>", {"A": ("1", "2", {"C": "3"}), "B": ""}),
        ("x", "<Encrypt>of a compat body</Encrypt>", {}),
    ],
)
def test_an_event_that_is_not_known_keeps_its_elements(name, inner, elements):
    message = parse_message(event(name, inner))
    assert type(message) is OtherEvent
    assert message.event == name
    assert elements is None or message.elements == elements


def test_an_event_without_a_name_is_an_event():
    assert parse_message(push("", "event")).event == ""


def test_message_location_and_event_location_are_two_things():
    place = "<Location_X>1</Location_X><Location_Y>2</Location_Y>"
    assert type(parse_message(push(f"{place}<Event>LOCATION</Event>", "location"))) is LocationMessage
    assert type(parse_message(event("location", place))) is OtherEvent


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"<xml/>",
        b"\xff",
        b'{"MsgType": "text"}',
        push(FromUserName=None),
        push(FromUserName=""),
        push(FromUserName=" "),
        push(FromUserName="o" * 129),
        push(msg_type=None),
        push(msg_type=""),
        event("deep", "<a>" * 40 + "</a>" * 40),
        b"<xml><action>CheckContainerPath</action></xml>",
    ],
)
def test_what_is_no_message_is_unreadable(xml):
    with pytest.raises(UnreadablePushError) as refused:
        parse_message(xml)
    assert (refused.value.status, refused.value.reason) == (200, "xml")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1760000000", 1760000000),
        ("1760000000123", 1760000000),
        ("253402300799", 253402300799),
        *(
            (odd, 0)
            for odd in (None, "", "0", "now", "[1760000000]", "-1", "1.5", "１", "253402300800", "9" * 10_000)
        ),
    ],
)
def test_a_time_is_in_seconds_and_0_where_there_is_none(written, seconds):
    assert parse_message(push(CreateTime=written)).create_time == seconds


@pytest.mark.parametrize("msg_id", ["x", "-1", "1_0", 2**64, "1" * 10_000, "", "1.0"])
def test_a_msgid_of_no_64_bits_is_none(msg_id):
    message = parse_message(push(f"<MsgId>{msg_id}</MsgId><Content>a</Content>"))
    assert (message.msg_id, message.content) == (None, "a")


def test_a_json_push_says_what_to_choose():
    with pytest.raises(UnreadablePushError, match="choose XML as the data format"):
        parse_message(b'{"ToUserName": "gh", "MsgType": "text"}')


def test_a_doctype_is_refused():
    with pytest.raises(DoctypeError):
        parse_message(b"<!DOCTYPE xml>" + push())


def test_the_longest_openid_and_no_account_are_taken():
    message = parse_message(push(FromUserName="o" * 128, ToUserName=None))
    assert (len(message.from_user_name), message.to_user_name) == (128, "")


@pytest.mark.parametrize("msg_id", [0, 2**53 + 1, 2**63, 2**64 - 1])
def test_64_bits_stay_whole(msg_id):
    assert parse_message(push(f"<MsgId>{msg_id}</MsgId>")).msg_id == msg_id


def test_msgid_with_a_capital_d_is_for_events():
    assert parse_message(push("<MsgID>7</MsgID>")).msg_id is None
    assert parse_message(event("x", "<MsgID>7</MsgID>")).msg_id == 7
    assert parse_message(event("x", "<MsgId>8</MsgId>")).msg_id == 8
    assert parse_message(event("x", "<MsgID>none</MsgID>")).msg_id is None


def test_idx_that_is_no_number_is_none():
    assert parse_message(push("<Idx>first</Idx><MsgDataId>1_2</MsgDataId>")).idx is None


def test_of_a_repeated_element_the_first_counts():
    message = parse_message(
        push("<Content>a</Content><Content>b</Content><FromUserName>other</FromUserName>")
    )
    assert (message.content, message.from_user_name) == ("a", "o")


@pytest.mark.parametrize("name", ["content", "raw", "dedupe_key", "__class__", "media_id", "_time_key"])
def test_elements_never_become_attributes(name):
    message = parse_message(push(f"<{name}>evil</{name}><Content>good</Content>"))
    assert message.content == "good"
    assert message.raw.startswith(b"<xml>")
    assert message.media_id is None
    assert message.dedupe_key.startswith("h:")


# --- dedupe_key ---


def test_a_message_is_known_by_its_msgid():
    first = parse_message(push("<MsgId>24601000000000104</MsgId><Content>a</Content>"))
    assert first.dedupe_key == "m:24601000000000104"
    assert parse_message(push("<MsgId>24601000000000104</MsgId>", "image")).dedupe_key == first.dedupe_key


CARD = "<CardId>p</CardId><UserCardCode>{}</UserCardCode><OuterStr></OuterStr>"
NOTICE = "<SubscribeMsgSentEvent><List><TemplateId>{}</TemplateId></List></SubscribeMsgSentEvent>"
SCANNED = "<EventKey>k</EventKey><ScanCodeInfo><ScanType>qrcode</ScanType><ScanResult>{}</ScanResult></ScanCodeInfo>"
OF_ONE_SECOND = [
    *(event("user_get_card", CARD.format(code)) for code in (1, 2)),
    *(event("subscribe_msg_sent_event", NOTICE.format(template)) for template in "ab"),
    *(event("scancode_waitmsg", SCANNED.format(result)) for result in "ab"),
    *(event("CLICK", f"<EventKey>{key}</EventKey>") for key in "ab"),
    *(event("TEMPLATESENDJOBFINISH", f"<MsgID>{number}</MsgID>") for number in (1, 2)),
    event("a", "<EventKey>bc</EventKey>"),
    event("ab", "<EventKey>c</EventKey>"),
    event("x", "<a>bc</a>"),
    event("x", "<ab>c</ab>"),
    event("x", "<a><b>c</b></a>"),
    event("x", "<a>b</a><a>c</a>"),
    event("x", "<a>c</a><b>c</b>"),
    event("subscribe"),
    event("unsubscribe"),
    push("<Event>subscribe</Event>", "event", CreateTime="1760000001"),
    push("<Content>a</Content>"),
    push("<Content>b</Content>"),
    push("<MediaId>a</MediaId>", "image"),
    push("<MediaId>b</MediaId>", "image"),
    push("<Content>a</Content><MsgId>no number</MsgId>"),
]


def test_messages_of_one_second_are_told_apart_by_all_they_say():
    keys = [parse_message(xml).dedupe_key for xml in OF_ONE_SECOND]
    assert len(set(keys)) == len(keys)
    assert all(key.isascii() and len(key) < 48 for key in keys)


def turned(xml):
    """The same elements the other way round, at every level, with white space between them."""
    root = ET.fromstring(xml)
    for parent in list(root.iter()):
        children = list(parent)
        parent[:] = children[::-1]
        if children:
            parent.text = "\n  "
    ET.SubElement(root, "Empty")
    return ET.tostring(root)


@pytest.mark.parametrize("xml", OF_ONE_SECOND)
def test_order_layout_and_empty_elements_do_not_change_a_key(xml):
    key = parse_message(xml).dedupe_key
    assert parse_message(xml).dedupe_key == key
    assert parse_message(turned(xml)).dedupe_key == key
    assert (
        parse_message(xml.replace(b"</xml>", b"<Encrypt>of this delivery</Encrypt></xml>")).dedupe_key == key
    )
    assert parse_message(xml.replace(b"<xml>", b"<xml>\x00")).dedupe_key == key


def test_the_keys_of_earlier_versions_are_known():
    digest = hashlib.sha256(b"subscribe\0\0").hexdigest()[:16]
    assert parse_message(event("subscribe")).former_dedupe_keys == (f"e:1760000000:{digest}",)
    digest = hashlib.sha256(b"a\0b\0" + b"7").hexdigest()[:16]
    xml = event("a", "<EventKey>b</EventKey><MsgID>7</MsgID>")
    assert parse_message(xml).former_dedupe_keys == (f"e:1760000000:{digest}",)
    digest = hashlib.sha256(b"\0\0").hexdigest()[:16]
    assert parse_message(push()).former_dedupe_keys == (f"e:1760000000:{digest}",)
    assert parse_message(push("<MsgId>1</MsgId>")).former_dedupe_keys == ()


def test_every_kind_can_be_built_by_hand():
    image = ImageMessage(
        to_user_name="gh", from_user_name="o", create_time=1, msg_type="image", msg_id=7, media_id="m"
    )
    assert (image.dedupe_key, image.media_id, image.media_kind, image.raw) == ("m:7", "m", "image", b"")
    assert "raw" not in repr(image)


@pytest.mark.parametrize(
    "body",
    [
        b"<a/>" * 250_000,
        b"<a>" * 300_000,
        (b"<a>" * 30 + b"</a>" * 30) * 4_800,
        b"<a><![CDATA[x]]></a>" * 50_000,
        b"<a>" + b"x<!---->" * 125_000 + b"</a>",
        b"&amp;" * 200_000,
        b"<a " + b" ".join(b'a%d="1"' % number for number in range(80_000)) + b"/>",
        b"<a " + b" ".join(b'xmlns:a%d="1"' % number for number in range(50_000)) + b"/>",
        b"<Latitude>" + b"9" * 1_000_000 + b"</Latitude>",
    ],
    ids=[
        "children",
        "open",
        "nested",
        "cdata",
        "comments",
        "references",
        "attributes",
        "namespaces",
        "digits",
    ],
)
def test_a_megabyte_of_malice_is_read_in_linear_time(body):
    xml = event("LOCATION").removesuffix(b"</xml>") + body + b"</xml>"
    started = time.process_time()
    with contextlib.suppress(UnreadablePushError):
        parse_message(xml)
    assert time.process_time() - started < 5


def test_text_is_no_push():
    with pytest.raises(TypeError, match="bytes as they came"):
        parse_message("<xml><FromUserName>o</FromUserName><MsgType>text</MsgType></xml>")
