"""How English and Chinese name shapes, colours and events; the canonical form of every answer."""

from __future__ import annotations

from typing import Literal, get_args

from build_scripts.demo_model.train.scene import Event, Thing

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

# The first noun is the one of answers; questions use all.
SHAPE_NOUNS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "circle": ("circle", "ball", "disc", "disk"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "star": ("star",),
        "cross": ("cross", "plus", "plus sign"),
    },
    "zh": {
        "circle": ("圆形", "圆", "圆圈", "球"),
        "square": ("方形", "正方形", "方块"),
        "triangle": ("三角形", "三角"),
        "star": ("星形", "星星", "五角星"),
        "cross": ("十字", "十字形", "加号"),
    },
}
GENERIC_NOUNS: dict[Language, tuple[str, ...]] = {
    "en": ("object", "shape", "thing", "figure"),
    "zh": ("图形", "物体", "东西", "形状"),
}
COLOUR_WORDS: dict[Language, dict[str, str]] = {
    "en": {name: name for name in ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")},
    "zh": {
        "red": "红色",
        "orange": "橙色",
        "yellow": "黄色",
        "green": "绿色",
        "blue": "蓝色",
        "purple": "紫色",
        "white": "白色",
        "black": "黑色",
    },
}
NUMBERS: dict[Language, tuple[str, ...]] = {"en": ("zero", "one", "two", "three"), "zh": ("零", "一", "两", "三")}
PART_ANSWERS: dict[Language, dict[str, str]] = {
    "en": {"beginning": "At the beginning.", "middle": "In the middle.", "end": "At the end."},
    "zh": {"beginning": "在开头。", "middle": "在中间。", "end": "在结尾。"},
}
PART_WORDS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "beginning": ("at the beginning", "at the start", "in the first part", "early on"),
        "middle": ("in the middle", "halfway through", "in the middle part"),
        "end": ("at the end", "in the last part", "near the end", "towards the end"),
    },
    "zh": {
        "beginning": ("在开头", "在开始的时候", "在前面部分"),
        "middle": ("在中间", "在中间部分", "在中段"),
        "end": ("在结尾", "在最后部分", "在快结束的时候"),
    },
}
_VERBS_EN: dict[Event, str] = {
    "still": "does not move",
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "shrink": "shrinks",
    "appear": "appears",
    "vanish": "disappears",
}
_VERBS_ZH: dict[Event, str] = {
    "still": "没有移动",
    "left": "向左移动",
    "right": "向右移动",
    "up": "向上移动",
    "down": "向下移动",
    "grow": "变大",
    "shrink": "变小",
    "appear": "出现",
    "vanish": "消失",
}
# What a question calls an event, as "does it VERB" and "when does it VERB".
PLAIN_VERBS: dict[Language, dict[Event, tuple[str, ...]]] = {
    "en": {
        "left": ("move to the left", "move left", "go left"),
        "right": ("move to the right", "move right", "go right"),
        "up": ("move up", "go up", "move upwards"),
        "down": ("move down", "go down", "move downwards"),
        "grow": ("grow", "get bigger", "become larger"),
        "shrink": ("shrink", "get smaller", "become smaller"),
        "appear": ("appear", "show up", "come into view"),
        "vanish": ("disappear", "vanish", "go away"),
        "recolour": ("change colour", "change its colour"),
        "still": ("stay still", "stay in place"),
    },
    "zh": {
        "left": ("向左移动", "往左走", "向左走"),
        "right": ("向右移动", "往右走", "向右走"),
        "up": ("向上移动", "往上走", "向上走"),
        "down": ("向下移动", "往下走", "向下走"),
        "grow": ("变大", "变得更大"),
        "shrink": ("变小", "变得更小"),
        "appear": ("出现", "显示出来"),
        "vanish": ("消失", "不见"),
        "recolour": ("变颜色", "改变颜色"),
        "still": ("不动", "静止"),
    },
}
# The same as "which object VERBS?"
THIRD_PERSON_EN: dict[Event, tuple[str, ...]] = {
    "left": ("moves to the left", "moves left", "goes left"),
    "right": ("moves to the right", "moves right", "goes right"),
    "up": ("moves up", "goes up", "moves upwards"),
    "down": ("moves down", "goes down", "moves downwards"),
    "grow": ("grows", "gets bigger", "becomes larger"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller"),
    "appear": ("appears", "shows up", "comes into view"),
    "vanish": ("disappears", "vanishes", "goes away"),
    "recolour": ("changes colour", "changes its colour"),
    "still": ("stays still", "does not move", "stays in place"),
}


def noun(language: Language, colour: str, shape: str) -> str:
    """The canonical name: "red circle"."""
    words = COLOUR_WORDS[language][colour], SHAPE_NOUNS[language][shape][0]
    return " ".join(words) if language == "en" else "".join(words)


def with_article(text: str) -> str:
    """English: "a red circle", "an orange star"."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def verb(language: Language, thing: Thing) -> str:
    """What the thing does, in the third person: "moves to the left", "turns blue"."""
    if thing.to_colour is not None:
        colour = COLOUR_WORDS[language][thing.to_colour]
        return f"turns {colour}" if language == "en" else f"变成{colour}"
    return (_VERBS_EN if language == "en" else _VERBS_ZH)[thing.event]


def motion(language: Language, thing: Thing) -> str:
    """The same for a question about movement: whatever else it does, a thing without a direction does not move."""
    verbs = _VERBS_EN if language == "en" else _VERBS_ZH
    return verbs[thing.event if thing.event in ("left", "right", "up", "down") else "still"]


def sentence(language: Language, thing: Thing, article: str = "the") -> str:
    """A whole sentence: "The red circle grows."; in Chinese, which has no articles, 红色圆形变大。"""
    name = noun(language, thing.colour, thing.shape)
    if language == "zh":
        return f"{name}{verb(language, thing)}。"
    start = f"the {name}" if article == "the" else with_article(name)
    return f"{start[0].upper()}{start[1:]} {verb(language, thing)}."
