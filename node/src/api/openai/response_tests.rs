use super::*;

fn answer(kind: Kind) -> Answer {
    Answer {
        kind,
        session: "5e55".into(),
        model: "m".into(),
        created: 7,
        logprobs: false,
        token_ids: false,
        include_usage: false,
    }
}

fn piece(text: &str) -> Piece {
    Piece {
        id: 9,
        text: text.into(),
        scored: Scored {
            bytes: text.into(),
            logprob: -0.5,
        },
        top: vec![Scored {
            bytes: b"alt".to_vec(),
            logprob: f32::NEG_INFINITY,
        }],
    }
}

const USAGE: Usage = Usage {
    prompt: 3,
    completion: 2,
};

#[test]
fn a_whole_chat_answer_has_openai_s_shape() {
    let body = answer(Kind::Chat).whole(&[piece("a"), piece("b")], "c", Finish::Stop, USAGE);
    let expected = json!({
        "id": "chatcmpl-5e55",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "abc", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    });
    assert_eq!(body, expected);
}

#[test]
fn a_whole_text_answer_has_openai_s_shape() {
    let body = answer(Kind::Text).whole(&[piece("a")], "", Finish::Length, USAGE);
    assert_eq!(body["id"], "cmpl-5e55");
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"][0]["text"], "a");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[test]
fn the_chunks_of_a_chat_join_to_its_whole_answer() {
    let answer = answer(Kind::Chat);
    let chunks = [
        answer.opening().unwrap(),
        answer.token(&piece("a"), 0),
        answer.token(&piece(""), 1),
        answer.closing("b", Finish::Stop),
    ];
    let mut text = String::new();
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert!(chunk.get("usage").is_none());
        text.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap());
    }
    assert_eq!(text, "ab");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], Value::Null);
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
}

#[test]
fn only_the_usage_chunk_has_no_choice_and_only_it_has_numbers() {
    let mut answer = answer(Kind::Text);
    answer.include_usage = true;
    assert!(answer.opening().is_none());
    assert_eq!(answer.token(&piece("a"), 0)["usage"], Value::Null);
    let last = answer.usage(USAGE);
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], 5);
}

#[test]
fn logprobs_of_a_chat_are_a_list_of_tokens_with_bytes() {
    let mut answer = answer(Kind::Chat);
    answer.logprobs = true;
    let chunk = answer.token(&piece("é"), 0);
    let entry = &chunk["choices"][0]["logprobs"]["content"][0];
    assert_eq!(entry["token"], "é");
    assert_eq!(entry["bytes"], json!([0xc3, 0xa9]));
    assert_eq!(entry["logprob"], -0.5);
    assert_eq!(entry["top_logprobs"][0]["token"], "alt");
    assert_eq!(entry["top_logprobs"][0]["logprob"], -9999.0);
    assert_eq!(
        answer.closing("", Finish::Stop)["choices"][0]["logprobs"],
        Value::Null
    );
}

#[test]
fn logprobs_of_a_text_are_columns_with_offsets() {
    let mut answer = answer(Kind::Text);
    answer.logprobs = true;
    let body = answer.whole(&[piece("ab"), piece("c")], "", Finish::Stop, USAGE);
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["ab", "c"]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 2]));
    assert_eq!(logprobs["top_logprobs"][1], json!({"alt": -9999.0}));
    let chunk = answer.token(&piece("d"), 3);
    assert_eq!(chunk["choices"][0]["logprobs"]["text_offset"], json!([3]));
}

#[test]
fn token_ids_are_listed_when_asked_for() {
    let mut answer = answer(Kind::Chat);
    answer.token_ids = true;
    assert_eq!(
        answer.token(&piece("a"), 0)["choices"][0]["token_ids"],
        json!([9])
    );
    let body = answer.whole(&[piece("a"), piece("b")], "", Finish::Stop, USAGE);
    assert_eq!(body["choices"][0]["token_ids"], json!([9, 9]));
}
