//! Renderings written down from transformers 5.23 with jinja2 3.1.6:
//! `render_jinja_template([messages], chat_template=…, bos_token="<s>", eos_token="</s>", …)`.

use super::*;
use crate::data::dataset::Dataset;

const CHATML: &str = "\
    {% for message in messages %}\
    {% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}\
    {% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const MISTRAL: &str = "\
    {{ bos_token }}{% for message in messages %}\
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
    {% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}\
    {% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token + '\n'}}{% endif %}\
    {% endfor %}";

const MARKED: &str = r#"{%- for message in messages %}
    {%- if message.role == 'assistant' %}
<|a|>
    {%- generation %}
        {{- message.content.rstrip() + '<|end|>' }}
    {% endgeneration %}
    {%- else %}
<|{{ message.role }}|>{{ message.content }}<|end|>
    {%- endif %}
{%- endfor %}
"#;

const SPACED: &str = r#"{#- a comment -#}
{% set ns = namespace(seen=0, last=none) %}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% set ns.seen = ns.seen + 1 %}
    {% if ns.seen > 2 %}
        {% break %}
    {% endif %}
  {{ loop.index }}: {{ message.role.title() }} {{ message.content | trim }}
{% endfor %}
tools={{ tools | tojson }}
{% if tools is not none and tools %}
{{ tools | tojson(indent=2) }}
{% endif %}
{{ ns.seen }} {{ ns.last }} {{ add_generation_prompt }} {{ missing }} {{ messages[0] }} {{
    tools[0]['name'].split('_')[-1] if tools else '' }}
{% for key, value in messages[-1].items() %}
{{- key }}={{ value }};
{%- endfor %}
"#;

const QWEN3: &str = r#"{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set content = m.content.split('</think>')[-1].lstrip('\n') %}
        {%- if loop.last %}
            {{- '<|im_start|>assistant\n<think>\n'
                + (m.reasoning_content or '') + '\n</think>\n\n' + content + '<|im_end|>\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n<think>\n' }}
{%- endif %}
"#;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, SpecialTokens::new([("bos_token", "<s>"), ("eos_token", "</s>")])).unwrap()
}

fn talk() -> Vec<Message> {
    let turns = [("user", " Hi "), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "Ciao\n")];
    turns.map(|(role, content)| Message::new(role, content)).to_vec()
}

fn with_system() -> Vec<Message> {
    [vec![Message::new("system", "Be <b>")], talk()].concat()
}

fn parts(turns: &Turns) -> Vec<&str> {
    turns.assistant.iter().map(|it| &turns.text[it.clone()]).collect()
}

#[test]
fn chatml_with_a_generation_prompt() {
    let text = template(CHATML).render(&talk()[..1], true).unwrap();
    let expected =
        "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text, expected);
}

#[test]
fn python_methods_special_tokens_and_refusals() {
    let template = template(MISTRAL);
    let expected = "<s>[INST] Hi [/INST] Hello!</s>\n[INST] Bye [/INST] Ciao\n</s>\n";
    assert_eq!(template.render(&talk(), false).unwrap(), expected);
    let error = template.render(&talk()[1..], false).unwrap_err().to_string();
    assert_eq!(error, "the chat template says: Conversation roles must alternate user/assistant/user/assistant/...");
}

#[test]
fn white_space_loop_controls_and_json() {
    let tools = serde_json::json!([
        {"name": "get_time", "args": {"zone": "é<", "n": [1, 2.5, true, null], "e": {}}}
    ]);
    let variables = Map::from_iter([("tools".to_owned(), tools)]);
    let expected = r#"  2: User Hi
  3: Assistant Hello!
tools=[{"name": "get_time", "args": {"zone": "é<", "n": [1, 2.5, true, null], "e": {}}}]
[
  {
    "name": "get_time",
    "args": {
      "zone": "é<",
      "n": [
        1,
        2.5,
        true,
        null
      ],
      "e": {}
    }
  }
]
3 None False  {'role': 'system', 'content': 'Be <b>'} time
role=assistant;content=Ciao
;"#;
    assert_eq!(template(SPACED).render_with(&with_system(), false, &variables).unwrap(), expected);
    let expected =
        "  1: User Hi\ntools=null\n1 None True  {'role': 'user', 'content': ' Hi '} \nrole=user;content= Hi ;";
    assert_eq!(template(SPACED).render(&talk()[..1], true).unwrap(), expected);
}

#[test]
fn generation_blocks_say_what_the_assistant_wrote() {
    let turns = template(MARKED).render_turns(&with_system()).unwrap();
    let expected = "<|system|>Be <b><|end|><|user|> Hi <|end|><|a|>Hello!<|end|>\n<|user|>Bye<|end|><|a|>Ciao<|end|>\n";
    assert_eq!(turns.text, expected);
    assert_eq!(parts(&turns), ["Hello!<|end|>\n", "Ciao<|end|>\n"]);
    assert_eq!(template(MARKED).render(&with_system(), false).unwrap(), expected);
    let odd = [Message::new("user", "\u{fdd0}")];
    assert!(template(MARKED).render_turns(&odd).unwrap_err().to_string().contains("noncharacters"));
}

#[test]
fn turns_are_found_without_generation_blocks() {
    let turns = template(CHATML).render_turns(&with_system()).unwrap();
    assert_eq!(turns.text, template(CHATML).render(&with_system(), false).unwrap());
    assert_eq!(parts(&turns), ["Hello!<|im_end|>\n", "Ciao\n<|im_end|>\n"]);
    // The line break behind the end-of-text token is not the assistant's.
    let turns = template(MISTRAL).render_turns(&talk()).unwrap();
    assert_eq!(parts(&turns), [" Hello!</s>", " Ciao\n</s>"]);
    // A conversation may start with the assistant.
    let turns = template(CHATML).render_turns(&talk()[1..]).unwrap();
    assert_eq!(parts(&turns)[0], "Hello!<|im_end|>\n");
}

#[test]
fn a_thought_in_the_generation_prompt_is_no_part_of_the_turn() {
    let expected = "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n\
                    <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nCiao\n<|im_end|>\n";
    assert_eq!(template(QWEN3).render(&talk(), false).unwrap(), expected);
    let expected = "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n\
                    <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n<think>\n";
    assert_eq!(template(QWEN3).render(&talk()[..3], true).unwrap(), expected);
    // One exchange: the prompt opens a thought, the turn closes it.
    let turns = template(QWEN3).render_turns(&talk()[..2]).unwrap();
    assert_eq!(parts(&turns), ["\n</think>\n\nHello!<|im_end|>\n"]);
    let mut thinking = talk()[..2].to_vec();
    thinking[1].other.insert("reasoning".into(), "Hm.".into());
    let turns = template(QWEN3).render_turns(&thinking).unwrap();
    assert_eq!(parts(&turns), ["Hm.\n</think>\n\nHello!<|im_end|>\n"]);
    // Of two exchanges the first loses its thought: nothing to point at.
    let error = template(QWEN3).render_turns(&talk()).unwrap_err().to_string();
    assert!(error.contains("rewrites earlier turns"), "{error}");
}

#[test]
fn dates_can_be_fixed() {
    let template = template("{{ strftime_now('%d %b %Y') }}");
    assert_eq!(template.at(1_721_952_000).render(&[], false).unwrap(), "26 Jul 2024");
}

#[test]
fn a_template_that_is_none_is_refused_at_once() {
    let error = ChatTemplate::new("{% for %}", SpecialTokens::default()).unwrap_err().to_string();
    assert!(error.starts_with("the chat template says: syntax error"), "{error}");
}

#[test]
fn json_options_are_those_of_python() {
    // json.dumps({"b": "é😀", "a": []}, …)
    let source = "{{ x|tojson }} {{ x|tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}";
    let variables = Map::from_iter([("x".to_owned(), serde_json::json!({"b": "é😀", "a": []}))]);
    assert_eq!(
        template(source).render_with(&[], false, &variables).unwrap(),
        r#"{"b": "é😀", "a": []} {"a":[],"b":"\u00e9\ud83d\ude00"}"#
    );
}

#[test]
fn a_folder_gives_its_default_template() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let load = || ChatTemplate::load(folder.path(), &SpecialTokens::default());
    let render = || load().unwrap().unwrap().render(&[], false).unwrap();
    assert!(load().unwrap().is_none());
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "tool_use", "template": "no"}]}"#);
    assert!(load().unwrap_err().to_string().contains("no template named `default`"));
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "default", "template": "listed"}]}"#);
    assert_eq!(render(), "listed");
    write("tokenizer_config.json", r#"{"chat_template": "plain"}"#);
    assert_eq!(render(), "plain");
    write("chat_template.jinja", "file");
    assert_eq!(render(), "file");
}

#[test]
fn conversations_are_read_in_both_spellings() {
    let rows = r#"{"c": [{"role": "user", "content": "a", "name": "N"}, {"role": "assistant", "tool_calls": []}]}
{"c": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
{"c": [{"role": "user"}]}
{"c": "a"}
{"c": [{"role": "user", "content": {"a": 1}}]}"#;
    let data = Dataset::parse("a.jsonl", rows, crate::data::dataset::TextRows::Lines).unwrap();
    let read = |index: usize| messages(&data, &data.rows[index], "c");
    let named = read(0).unwrap();
    assert_eq!((named[0].other["name"].as_str(), named[1].content.as_str()), (Some("N"), ""));
    assert_eq!(read(1).unwrap(), [Message::new("user", "a"), Message::new("assistant", "b")]);
    assert_eq!(read(2).unwrap_err().to_string(), "a.jsonl, line 3: message 1 of `c` has no `content`");
    assert_eq!(read(3).unwrap_err().to_string(), "a.jsonl, line 4: column `c` is text, expected a list of messages");
    assert!(read(4).unwrap_err().to_string().contains("has an object as its content"));
}

#[test]
fn a_template_cannot_run_forever_or_fill_the_memory() {
    let run = |source: &str| {
        let template = ChatTemplate::new(source, SpecialTokens::default())?;
        template.render(&[Message::new("user", "hello")], false)
    };
    let forever =
        "{% for i in range(99999) %}{% for j in range(99999) %}{% if i > j %}{% endif %}{% endfor %}{% endfor %}";
    assert!(run(forever).unwrap_err().to_string().contains("fuel"), "{:?}", run(forever));
    let doubling = format!("{{% set x = 'aaaaaaaa' %}}{}", "{% set x = x ~ x %}".repeat(40));
    assert!(run(&doubling).unwrap_err().to_string().contains("a longer text"));
    let blocks = format!("{{% set x = 'aaaaaaaa' %}}{}", "{% set x %}{{ x }}{{ x }}{% endset %}".repeat(40));
    assert!(run(&blocks).unwrap_err().to_string().contains("a longer text"));
    let spaces =
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    assert!(run(spaces).unwrap_err().to_string().contains("a longer text"));
    let output = "{% for i in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}";
    assert!(run(output).is_err());
    let macros = "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('a') }}";
    assert!(run(macros).is_err());
    let withs = format!("{}{}", "{% with x = 'a' ~ 'b' %}".repeat(40), "{% endwith %}".repeat(40));
    assert!(run(&withs).unwrap_err().to_string().contains("`with` blocks"));
    for show in ["{{ ns }}", "{{ ns|tojson }}", "{{ ns ~ 'x' }}", "{{ ns == ns.x }}", "{{ ns|string }}"] {
        let itself = format!("{{% set ns = namespace() %}}{{% set ns.x = [{{'a': ns}}] %}}{show}");
        assert!(run(&itself).unwrap_err().to_string().contains("a namespace into a namespace"), "{show}");
    }
    for hungry in [
        r#"{{ "a"|indent(100000000000) }}"#,
        r#"{{ "a"|indent(width=100000000000) }}"#,
        r#"{{ "%0100000000000d"|format(1) }}"#,
        r#"{{ "{:>100000000000}".format(1) }}"#,
        r#"{{ [1]|batch(10000000000, "x")|list }}"#,
        r#"{{ [1]|slice(10000000000)|list }}"#,
        r#"{{ ("a\n" * 1000000)|indent(1000000) }}"#,
        r#"{{ "x"|replace("", "y" * 1000000)|replace("y", "z" * 1000000)|length }}"#,
        r#"{{ ("y" * 1000000).replace("y", "z" * 1000000)|length }}"#,
        r#"{% set x = ["a" * 1000000] * 1000000 %}{{ x|join|length }}"#,
        r#"{% set x = ["a" * 1000000] * 1000000 %}{{ "".join(x)|length }}"#,
        r#"{{ ([1] * 1000000)|join("a" * 1000000)|length }}"#,
        r#"{{ (["x"] * 1000000)|map("replace", "", "y" * 1000000)|list }}"#,
        r#"{{ ([1] * 30000000)|list|length }}"#,
        r#"{{ ([1] * 30000000)|sort|unique|list }}"#,
        r#"{{ ([1] * 10000000)|tojson|length }}"#,
        r#"{{ {"a": 1}|tojson(indent=10000000000) }}"#,
        r#"{% for i in range(10000) %}{% set x = ([1] * 1000000)|sort %}{% endfor %}"#,
    ] {
        let error = run(hungry).unwrap_err().to_string();
        assert!(error.contains("than a conversation can be") || error.contains("write a loop"), "{hungry}: {error}");
    }
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}";
    assert!(run(deep).unwrap_err().to_string().contains("deeper lists"));
}

#[test]
fn assignments_are_what_they_were() {
    let template = "{%- set a, b = 'x', 'y' -%}\n{%- set c = 1 if a == 'x' else 2 %}{% set ns = namespace(n=0, l=[]) %}\
                    {%- for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.l = ns.l + [m.role] %}{%- endfor -%}\
                    {% set d | upper %}word{% endset %}{{ a }}{{ b }}{{ c }}{{ ns.n }}{{ ns.l }}{{ d }}{% set e = {'k': [1, 2]} %}{{ e }}";
    let template = ChatTemplate::new(template, SpecialTokens::default()).unwrap();
    let text = template.render(&[Message::new("user", "a"), Message::new("assistant", "b")], false).unwrap();
    assert_eq!(text, "xy12['user', 'assistant']WORD{'k': [1, 2]}");
}

/// `get_chat_template` of transformers 5.24.
#[test]
fn conversations_with_tools_have_a_template_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let text = |tools: Json| {
        let template = ChatTemplate::load(folder.path(), &SpecialTokens::default()).unwrap().unwrap();
        let variables = Map::from_iter([("tools".to_owned(), tools)]);
        let turns = template.render_turns_with(&[Message::new("user", "a")], &variables).unwrap().text;
        assert_eq!(turns, template.render_with(&[Message::new("user", "a")], false, &variables).unwrap());
        turns
    };
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0] }}"}]}"#,
    );
    assert_eq!([text(Json::Null), text(vec!["f"].into())], ["plain", "f"]);
    write("chat_template.jinja", "file");
    assert_eq!([text(Json::Null), text(vec!["f"].into())], ["file", "file"]);
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "with tools");
    assert_eq!([text(Json::Null), text(vec!["f"].into())], ["file", "with tools"]);
}

/// What templates of models use, in strict and in lenient templates.
#[test]
fn filters_with_limits_are_the_filters() {
    let template = r#"{{ " a,b "|trim|upper }}{{ [3, 1, 2]|sort|join("-") }}{{ ["x", "y"]|map("upper")|list }}{{ {"b": [1]}|tojson(indent=2) }}
{{- messages|selectattr("role", "equalto", "user")|map(attribute="content")|first }}{{ "a\nb"|indent(2) }}{{ "aXb".replace("X", "--").split("--")[1] }}
{{- ", ".join(["p", "q"]) }}{{ "%03d"|format(7) }}{{ {"k": 1, "a": 2}|dictsort }}{{ "abc"|reverse }}{{ [1, 2, 3]|batch(2)|list }}{{ missing|default("d") }}{{ [1, 1]|unique|list }}"#;
    let template = ChatTemplate::new(template, SpecialTokens::default()).unwrap();
    let text = template.render(&[Message::new("user", "hi")], false).unwrap();
    assert_eq!(
        text,
        "A,B1-2-3['X', 'Y']{\n  \"b\": [\n    1\n  ]\n}hia\n  bbp, q007[['a', 2], ['k', 1]]cba[[1, 2], [3]]d[1]"
    );
}

/// Whether the template or the messages are to blame, nobody can tell from outside: both are named.
#[test]
fn what_a_template_says_names_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chat_template.jinja");
    std::fs::write(&file, "{{ messages[0].content }}{{ raise_exception('no more turns') }}").unwrap();
    let template = ChatTemplate::load(folder.path(), &SpecialTokens::default()).unwrap().unwrap();
    let error = template.render(&talk(), false).unwrap_err().to_string();
    assert_eq!(error, format!("the chat template of {} says: no more turns", file.display()));
    std::fs::write(&file, "{{ messages[-1].content }}").unwrap();
    let template = ChatTemplate::load(folder.path(), &SpecialTokens::default()).unwrap().unwrap();
    let error = template.render_turns(&talk()).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
}
