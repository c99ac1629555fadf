use serde_json::json;

use super::*;

fn chat(extra: Value) -> Result<ChatRequest, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    merge(&mut body, extra);
    ChatRequest::parse(body)
}

fn completion(extra: Value) -> Result<CompletionRequest, ApiError> {
    let mut body = json!({"model": "m", "prompt": "hi"});
    merge(&mut body, extra);
    CompletionRequest::parse(body)
}

fn merge(body: &mut Value, extra: Value) {
    let (Value::Object(body), Value::Object(extra)) = (body, extra) else {
        panic!("both are objects");
    };
    body.extend(extra);
}

fn blamed(error: &ApiError) -> String {
    error.body()["error"]["param"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

#[test]
fn absent_fields_have_openai_s_defaults() {
    let options = chat(json!({})).unwrap().options;
    let expected = Options {
        model: "m".into(),
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        seed: None,
        max_tokens: None,
        stop: vec![],
        stream: false,
        include_usage: false,
        logprobs: None,
        return_token_ids: false,
        fault_tolerance: None,
    };
    assert_eq!(options, expected);
}

#[test]
fn null_means_absent() {
    let nulls = json!({
        "temperature": null, "top_p": null, "seed": null, "stop": null, "max_tokens": null,
        "stream": null, "stream_options": null, "n": null, "tools": null, "logprobs": null,
        "response_format": null, "logit_bias": null, "user": null,
    });
    assert_eq!(chat(nulls).unwrap(), chat(json!({})).unwrap());
}

#[test]
fn given_fields_are_taken() {
    let options = chat(json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7,
        "max_completion_tokens": 12, "stop": "END", "stream": true,
        "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 3,
        "return_token_ids": true, "user": "somebody", "unheard_of": [1],
    }))
    .unwrap()
    .options;
    assert_eq!((options.temperature, options.top_p), (0.5, 0.9));
    assert_eq!((options.top_k, options.min_p), (40, 0.05));
    assert_eq!((options.seed, options.max_tokens), (Some(7), Some(12)));
    assert_eq!(options.stop, ["END"]);
    assert!(options.stream && options.include_usage && options.return_token_ids);
    assert_eq!(options.logprobs, Some(3));
}

#[test]
fn what_is_out_of_range_or_of_the_wrong_type_is_refused_by_name() {
    let cases = [
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.01}), "top_p"),
        (json!({"top_k": -1}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": "lucky"}), "seed"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 5_000_000_000_u64}), "max_tokens"),
        (
            json!({"max_completion_tokens": -5}),
            "max_completion_tokens",
        ),
        (
            json!({"max_tokens": 1, "max_completion_tokens": 2}),
            "max_tokens",
        ),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": [1]}), "stop"),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"stream": "yes"}), "stream"),
        (
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
        ),
        (json!({"n": 2}), "n"),
        (json!({"n": 0}), "n"),
        (json!({"frequency_penalty": 0.5}), "frequency_penalty"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        (json!({"tools": [{}]}), "tools"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (json!({"logprobs": 5}), "logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"model": ""}), "model"),
        (json!({"model": 3}), "model"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
        ),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "boss", "content": "x"}]}),
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content",
        ),
    ];
    for (extra, param) in cases {
        let error = chat(extra.clone()).expect_err(&extra.to_string());
        assert_eq!(blamed(&error), param, "{extra}: {error}");
    }
}

#[test]
fn harmless_values_of_unsupported_fields_are_accepted() {
    chat(json!({
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {},
        "tools": [], "response_format": {"type": "text"},
    }))
    .unwrap();
    completion(json!({"echo": false, "suffix": "", "best_of": 1})).unwrap();
}

#[test]
fn content_is_a_text_or_parts_of_text() {
    let request = chat(json!({"messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": null},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]}))
    .unwrap();
    let said: Vec<(&str, &str)> = request
        .messages
        .iter()
        .map(|m| (m.role.as_str(), m.content.as_str()))
        .collect();
    assert_eq!(
        said,
        [("system", "Be brief."), ("assistant", ""), ("user", "ab")]
    );
}

#[test]
fn a_prompt_is_a_text_or_token_ids() {
    let cases = [
        (json!("hi"), Prompt::Text("hi".into())),
        (json!(["hi"]), Prompt::Text("hi".into())),
        (json!([1, 2]), Prompt::Tokens(vec![1, 2])),
        (json!([[1, 2]]), Prompt::Tokens(vec![1, 2])),
    ];
    for (given, expected) in cases {
        let request = completion(json!({"prompt": given})).unwrap();
        assert_eq!(request.prompt, expected);
    }
}

#[test]
fn other_prompts_and_extras_of_completions_are_refused_by_name() {
    let cases = [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"echo": true}), "echo"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"logprobs": true}), "logprobs"),
    ];
    for (extra, param) in cases {
        let error = completion(extra.clone()).expect_err(&extra.to_string());
        assert_eq!(blamed(&error), param, "{extra}: {error}");
    }
}

#[test]
fn a_negative_seed_stands_for_its_bits() {
    let options = chat(json!({"seed": -1})).unwrap().options;
    assert_eq!(options.seed, Some(u64::MAX));
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for body in [json!([]), json!("x"), json!(1), json!(null)] {
        assert!(ChatRequest::parse(body).is_err());
    }
}

#[test]
fn a_level_of_fault_tolerance_is_taken_and_what_is_none_is_refused() {
    for level in [FaultTolerance::Low, FaultTolerance::Critical] {
        let taken = completion(json!({"fault_tolerance": level.name()})).unwrap();
        assert_eq!(taken.options.fault_tolerance, Some(level));
    }
    let cases = [
        (json!("some"), "invalid_value"),
        (json!(2), "invalid_value"),
    ];
    for (level, code) in cases {
        let error = chat(json!({"fault_tolerance": level})).unwrap_err();
        let body = error.body();
        assert_eq!(body["error"]["code"], code, "{level}");
        assert_eq!(blamed(&error), "fault_tolerance", "{level}");
        assert!(body["error"]["hint"].is_string(), "{level}");
    }
}
