"""The chat template: as transformers renders it, special tokens by the template alone, cut to fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.text.chat import ChatTemplate
from gpt2kit.text.tokenizer import Tokenizer

END = "<|endoftext|>"
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token }}"  # nothing stands between messages
TRIMMED = "{% for m in messages %}{{ m.content | trim }}{% endfor %}{{ eos_token }}"
TEMPLATES = [  # in the ways in which such templates are written
    """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% endif %}""",
    """{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] | trim -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for m in rest -%}
    {%- if m['role'] == 'assistant' and loop.first -%}{%- continue -%}{%- endif -%}
    {{- '[' ~ loop.index0 ~ '] ' ~ m['role'] | upper ~ ': ' ~ m.content | tojson ~ (eos_token if loop.last else '') -}}
{%- endfor -%}""",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\n  {{ ns.n }} {{ m.content }}\n"
    "  {% if m.role == 'user' %}user\n  {% endif %}{% endfor %}{{ bos_token }}",
]
CONVERSATIONS = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": " 简短回答 "}, {"role": "user", "content": "你好 🤗"}],
    [
        {"role": "assistant", "content": 'I say "hi"'},
        {"role": "user", "content": f"a\n\n{END}<b> & c"},
        {"role": "assistant", "content": ""},
    ],
]


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)]


def test_the_default_template_names_each_turn_and_ends_it() -> None:
    messages = [{"role": "system", "content": "Be brief.\n"}, *talk("春？", "Spring.")]
    text = f"system\nBe brief.{END}user\n春？{END}assistant\nSpring.{END}"
    assert ChatTemplate().render(messages, add_generation_prompt=False) == text
    assert ChatTemplate().render(messages) == text + "assistant\n"


@pytest.mark.parametrize("source", [*TEMPLATES, PLAIN])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_templates_render_as_transformers_renders_them(source: str, messages: list[dict[str, str]]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos_token": "<s>", "eos_token": "</s>"}
    for prompt in (True, False):
        expected, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=prompt, **special)
        assert ChatTemplate(source, special).render(messages, prompt) == expected[0]


# ------------------------------------------------------------------------------------------ special tokens


def pieces_of(name: str) -> st.SearchStrategy[str]:
    """Texts that play at being a special token: its name whole, cut, glued and padded."""
    cuts = [name[i:j] for i in range(len(name)) for j in range(i + 1, len(name) + 1)]
    return st.lists(st.sampled_from([name, *cuts, " ", "\n", "a", "春"]), max_size=6).map("".join)


@pytest.mark.parametrize("kind", ["gpt2", "trained", "characters", "wordpiece"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_only_the_template_writes_special_tokens(
    request: pytest.FixtureRequest, kind: str, data: st.DataObject
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    assert tokenizer.eot_id is not None
    name = next(name for name, token in tokenizer.special_tokens.items() if token == tokenizer.eot_id)
    contents = data.draw(st.lists(pieces_of(name), min_size=1, max_size=4))
    special = {"eos_token": name}

    end = [tokenizer.eot_id]
    turns = [tokenizer.encode(f"{m['role']}\n{m['content'].strip()}") + end for m in talk(*contents)]
    expected = [*(token for turn in turns for token in turn), *tokenizer.encode("assistant\n")]
    assert ChatTemplate(special=special).encode(tokenizer, talk(*contents)) == expected

    for source, joined in ((PLAIN, contents), (TRIMMED, [text.strip() for text in contents])):
        ids = ChatTemplate(source, special).encode(tokenizer, talk(*contents))
        assert ids == tokenizer.encode("".join(joined)) + end


@pytest.mark.parametrize("cut", range(1, len(END)))
def test_messages_cannot_write_a_special_token_together(trained: Tokenizer, cut: int) -> None:
    end = [trained.special_tokens[END]]
    messages = talk(END[:cut], END[cut:])
    assert ChatTemplate(PLAIN).encode(trained, messages) == trained.encode(END) + end
    padded = talk(f"{END[:cut]} \n", END[cut:])
    assert ChatTemplate(TRIMMED).encode(trained, padded) == trained.encode(END) + end


def test_what_a_user_types_would_otherwise_end_the_turn(trained: Tokenizer) -> None:
    """So that the test above is about something."""
    text = ChatTemplate().render(talk(END))
    assert trained.encode(text, "all").count(trained.special_tokens[END]) == 2
    assert ChatTemplate().encode(trained, talk(END)).count(trained.special_tokens[END]) == 1


def test_several_special_tokens_are_told_apart(trained: Tokenizer) -> None:
    tokenizer = trained.with_special(["<|user|>", "<|user|>!", "【问】", "㊙"])
    source = "{% for m in messages %}<|user|>!{{ m.content }}【问】㊙<|user|>{% endfor %}"
    ids = tokenizer.special_tokens
    found = ChatTemplate(source).encode(tokenizer, talk("<|user|>!【问】㊙"))
    typed = tokenizer.encode("<|user|>!【问】㊙")
    assert not set(typed) & set(ids.values())
    assert found == [ids["<|user|>!"], *typed, ids["【问】"], ids["㊙"], ids["<|user|>"]]


def test_a_name_with_a_special_token_in_it_is_ordinary_too(trained: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi", "name": END}]
    source = "{% for m in messages %}{{ m.name }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    expected = [*trained.encode(f"{END}: hi"), trained.special_tokens[END]]
    assert ChatTemplate(source).encode(trained, messages) == expected


@pytest.mark.parametrize(
    "message",
    [{"role": "tool", "content": "x"}, {"role": END, "content": "x"}, {"content": "x"}, {"role": "user"}],
)
def test_unknown_roles_and_half_messages_are_refused(message: dict[str, str], trained: Tokenizer) -> None:
    with pytest.raises(UserError, match="system, user, assistant"):
        ChatTemplate().render([message])
    with pytest.raises(UserError, match="system, user, assistant"):
        ChatTemplate().encode(trained, [message])


def test_a_lone_surrogate_is_refused_and_not_taken_for_a_stand_in(trained: Tokenizer) -> None:
    for code in (0xD800, 0xD801, 0xDC00, 0xDFFF):
        with pytest.raises(UserError, match="lone surrogate"):
            ChatTemplate().encode(trained, talk(chr(code)))


# ------------------------------------------------------------------------------------------------- folders


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": null}')
    assert ChatTemplate.load(tmp_path) is None


@pytest.mark.parametrize(
    "template", [PLAIN, [{"name": "tool_use", "template": ""}, {"name": "default", "template": PLAIN}]]
)
@pytest.mark.parametrize("token", ["</s>", {"content": "</s>", "special": True}])
def test_a_template_in_the_tokenizers_settings_is_found(tmp_path: Path, template: Any, token: Any) -> None:
    config = {"chat_template": template, "eos_token": token, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.render(talk("a", "b")) == "ab</s>"


def test_the_template_file_wins_and_survives_saving(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "wrong", "eos_token": END}))
    ChatTemplate().save(tmp_path)
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.source == ChatTemplate().source
    assert found.render(talk("春")) == ChatTemplate().render(talk("春"))


def test_a_template_that_the_manifest_does_not_cover_is_refused(tmp_path: Path) -> None:
    (tmp_path / commit.MANIFEST).write_text(json.dumps({"format": 1, "files": {}}))
    ChatTemplate().save(tmp_path)
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("chat_template.jinja", b"\xff", "not a UTF-8"),
        ("chat_template.jinja", b"{% for %}", "not Jinja"),
        ("chat_template.jinja", b"x" * 300_000, "300,000 characters"),
        ("tokenizer_config.json", b"[]", "no JSON object"),
        ("tokenizer_config.json", b"{", "tokenizer_config"),
    ],
)
def test_a_broken_template_is_a_user_error(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        ChatTemplate.load(tmp_path)


def test_a_template_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="outside"):
        ChatTemplate.load(tmp_path / "model")


# ------------------------------------------------------------------------------------------------- sandbox


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "refuses"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[5].content }}", "no element 5"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        (
            "{% for a in range(100000) %}{% for b in range(100000) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
            "long",
        ),
    ],
)
def test_a_template_can_neither_reach_out_nor_run_over(source: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ChatTemplate(source).render(talk("hello"))


def test_without_jinja2_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError) as caught:
        ChatTemplate()
    assert caught.value.hint == "run: pip install 'gpt2kit[serve]'"


# --------------------------------------------------------------------------------------------- cut to fit


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    roles=st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=9),
    sizes=st.lists(st.integers(0, 30), min_size=9, max_size=9),
    pick=st.integers(0, 8),
    more=st.sampled_from([-1, 0, 1]),
)
@example(roles=["user"] * 4, sizes=[5] * 9, pick=1, more=0)
def test_the_fewest_oldest_turns_go(
    trained: Tokenizer, roles: list[str], sizes: list[int], pick: int, more: int
) -> None:
    template = ChatTemplate()
    messages = [{"role": role, "content": f"{i}" * sizes[i]} for i, role in enumerate(roles)]
    turns: list[list[dict[str, str]]] = []
    for message in messages:
        if message["role"] != "system":
            if message["role"] == "user" or not turns:
                turns.append([])
            turns[-1].append(message)

    def without(count: int) -> list[dict[str, str]]:
        gone = [id(message) for turn in turns[:count] for message in turn]
        return [message for message in messages if id(message) not in gone]

    tries = [(without(count), len(template.encode(trained, without(count)))) for count in range(max(len(turns), 1))]
    room = tries[pick % len(tries)][1] + more
    fitting = next(((kept, tokens) for kept, tokens in tries if tokens <= room), None)
    if fitting is None:
        with pytest.raises(UserError, match=f"there is room for {room}"):
            template.truncate(trained, messages, room)
    else:
        found = template.truncate(trained, messages, room)
        assert (found.messages, found.tokens) == fitting
        assert found.dropped == len(messages) - len(fitting[0])
