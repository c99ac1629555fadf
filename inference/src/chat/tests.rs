use super::*;
use std::time::{Duration, UNIX_EPOCH};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "<s>", "</s>").expect("the template is fine")
}

fn render(source: &str) -> Result<String, ChatError> {
    let messages = [ChatMessage::new("user", "hi <b> & \"é\"")];
    let now = UNIX_EPOCH + Duration::from_secs(1_709_164_800);
    template(source).render_at(&messages, true, now)
}

#[test]
fn templates_find_what_they_expect_of_transformers() {
    let cases = [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ messages[0]['content'] }}", "hi <b> & \"é\""),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{{ strftime_now('%d %b %Y') }}", "29 Feb 2024"),
        ("{{ messages[0].role.upper() }}", "USER"),
        ("{{ messages[0].content.split(' ')[0] }}", "hi"),
        (
            "{{ messages[0] | tojson }}",
            r#"{"role": "user", "content": "hi <b> & \"é\""}"#,
        ),
        (
            "{{ [1, 2.5, none, true, 'x'] | tojson }}",
            r#"[1, 2.5, null, true, "x"]"#,
        ),
        (
            "{{ {'a': [1], 'b': []} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}",
        ),
        ("{% if tools %}tools{% else %}none{% endif %}", "none"),
        ("a {%- generation %} b{% endgeneration -%} c", "a bc"),
        (
            "{% for m in messages %}{% if loop.first %}1{% continue %}{% endif %}{% endfor %}",
            "1",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
    ];
    for (source, expected) in cases {
        let text = render(source).unwrap_or_else(|error| panic!("{source}: {error}"));
        assert_eq!(text, expected, "{source}");
    }
}

#[test]
fn a_template_can_refuse_a_conversation_in_its_own_words() {
    let error = render("{{ raise_exception('roles must alternate') }}").expect_err("refused");
    let ChatError::Refused { message } = error else {
        panic!("{error}");
    };
    assert_eq!(message, "roles must alternate");
}

#[test]
fn broken_templates_are_typed_errors() {
    let error = ChatTemplate::new("line one\n{% if %}", "", "").expect_err("broken");
    assert!(
        matches!(error, ChatError::BadTemplate { line: 2, .. }),
        "{error}"
    );
    let error = render("{{ nothing() }}").expect_err("no such function");
    assert!(
        matches!(error, ChatError::Render { line: 1, .. }),
        "{error}"
    );
    let long = "x".repeat(MAX_SOURCE_BYTES + 1);
    let error = ChatTemplate::new(&long, "", "").expect_err("too long");
    assert!(
        matches!(error, ChatError::TemplateTooLong { .. }),
        "{error}"
    );
}

#[test]
fn a_hostile_template_can_take_neither_time_nor_memory() {
    let bombs = [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ ('x' * 99999999) * 9999 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ range(99999) | list | tojson | length * 'x' }}{% for a in range(99999) %}{{ range(99999) | tojson }}{% endfor %}",
    ];
    for bomb in bombs {
        let outcome = render(bomb);
        assert!(
            outcome.is_err(),
            "{bomb} gave {} bytes",
            outcome.unwrap().len()
        );
    }
    let error = render(bombs[0]).expect_err("out of fuel");
    assert!(matches!(error, ChatError::TooExpensive), "{error}");
}

#[test]
fn a_template_survives_deep_nesting() {
    let deep = format!(
        "{}1{}",
        "{{ (".to_owned() + &"(".repeat(5000),
        ")".repeat(5001) + " }}"
    );
    assert!(ChatTemplate::new(&deep, "", "").is_err());
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    assert!(render(deep).is_err());
}

#[test]
fn a_long_conversation_is_rendered_and_a_huge_one_refused() {
    let source = "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}";
    let many = vec![ChatMessage::new("user", "x".repeat(1000)); 4000];
    let text = template(source)
        .render(&many, false)
        .expect("four megabytes are fine");
    assert!(text.len() > 4_000_000);
    let huge = [ChatMessage::new(
        "user",
        "x".repeat(MAX_CONVERSATION_BYTES + 1),
    )];
    let error = template(source).render(&huge, false).expect_err("too long");
    assert!(
        matches!(error, ChatError::ConversationTooLong { .. }),
        "{error}"
    );
}
