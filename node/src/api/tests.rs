//! The API over real HTTP, on a real node that is alone in its swarm.

use accel_actors::NodeConfig;
use accel_inference::synthetic::{self, SyntheticArch, SyntheticSpec};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

struct Running {
    http: Client,
    api: Api,
    node: NodeHandle,
    dir: TempDir,
}

impl Running {
    async fn start(access: Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = NodeConfig::loopback(dir.path().join("data"));
        let node = NodeHandle::start(config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = Api::start(node.clone(), listener, access).unwrap();
        let http = Client::builder().no_proxy().build().unwrap();
        Self {
            http,
            api,
            node,
            dir,
        }
    }

    async fn stop(self) {
        drop(self.http);
        self.api.stop().await;
        self.node.shutdown().await;
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api.addr)
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(self.url(path))
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.http.post(self.url(path)).json(body)
    }

    /// Adds a small generated model and gives its name.
    async fn add_model(&self) -> String {
        let path = self.dir.path().join("tiny.gguf");
        let spec = SyntheticSpec::small(SyntheticArch::Llama);
        synthetic::generate(&spec, &path).unwrap();
        let answer = self
            .post("/api/v1/models", &json!({"path": path}))
            .send()
            .await;
        let model = document(answer.unwrap(), 200).await;
        assert!(model["cid"].as_str().unwrap().starts_with("baf"), "{model}");
        model["name"].as_str().unwrap().to_owned()
    }
}

/// Runs a test within an actix system, as a node needs it.
fn on_a_node(access: Access, test: impl AsyncFnOnce(&Running)) {
    let system = actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    });
    system.block_on(async {
        let running = Running::start(access).await;
        test(&running).await;
        running.stop().await;
    });
}

async fn document(response: Response, status: u16) -> Value {
    let found = response.status().as_u16();
    let text = response.text().await.unwrap();
    assert_eq!(found, status, "{text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The error of a response: of the right status, with every key, and of the right code.
async fn error(request: RequestBuilder, status: u16, code: &str) -> Value {
    let body = document(request.send().await.unwrap(), status).await;
    let error = body["error"]
        .as_object()
        .unwrap_or_else(|| panic!("{body}"));
    for key in ["message", "type", "param", "code", "hint"] {
        assert!(error.contains_key(key), "{key} is missing in {body}");
    }
    assert_eq!(error["code"], code, "{body}");
    body["error"].clone()
}

#[test]
fn what_is_wrong_with_a_request_is_told_as_openai_tells_it() {
    on_a_node(Access::Open, async |node| {
        let chat = "/v1/chat/completions";
        error(node.get("/nowhere"), 404, "unknown_route").await;
        error(node.get(chat), 405, "method_not_allowed").await;
        let post = |body: &'static str| node.http.post(node.url(chat)).body(body);
        let json = |body| post(body).header("content-type", "application/json");
        error(json("{\"model\":"), 400, "invalid_json").await;
        error(json("[]"), 400, "invalid_value").await;
        error(post("{}"), 415, "content_type").await;
        let huge = json!({"model": "x".repeat(MAX_BODY)});
        error(node.post(chat, &huge), 413, "body_too_large").await;
        let mut body = json!({
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "top_p": 1.5,
        });
        let wrong = error(node.post(chat, &body), 400, "invalid_value").await;
        assert_eq!(wrong["param"], "top_p");
        body["top_p"] = json!(1);
        let unknown = error(node.post(chat, &body), 404, "model_not_found").await;
        assert!(unknown["hint"].as_str().unwrap().contains("model"));
        error(node.get("/api/v1/sessions/none"), 404, "session_not_found").await;
        error(node.get("/v1/models/none"), 404, "model_not_found").await;
        error(node.get("/api/v1/plan"), 400, "invalid_value").await;
        error(
            node.get("/api/v1/plan?model=m&context=x"),
            400,
            "invalid_value",
        )
        .await;
        let add = "/api/v1/models";
        error(node.post(add, &json!({"path": "a"})), 400, "invalid_value").await;
        error(
            node.post(add, &json!({"path": "/none"})),
            404,
            "file_not_found",
        )
        .await;
        let invite = json!({"ttl_seconds": 0});
        error(
            node.post("/api/v1/swarm/invite", &invite),
            400,
            "invalid_value",
        )
        .await;
    });
}

#[test]
fn a_node_tells_of_itself() {
    on_a_node(Access::Open, async |node| {
        for path in ["/health/live", "/health/ready"] {
            document(node.get(path).send().await.unwrap(), 200).await;
        }
        let models = document(node.get("/v1/models").send().await.unwrap(), 200).await;
        assert_eq!(models, json!({"object": "list", "data": []}));
        let me = document(node.get("/api/v1/node").send().await.unwrap(), 200).await;
        assert_eq!(me["peer_id"], node.node.peer_id());
        let peers = document(node.get("/api/v1/peers").send().await.unwrap(), 200).await;
        assert_eq!(peers["peers"][0]["is_self"], true, "{peers}");
        let metrics = node.get("/metrics").send().await.unwrap();
        assert!(metrics.text().await.unwrap().contains("# TYPE"));
    });
}

#[test]
fn with_a_key_only_health_is_for_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let key = ApiKey::load_or_create(dir.path()).unwrap();
    on_a_node(Access::Key(key.clone()), async |node| {
        document(node.get("/health/live").send().await.unwrap(), 200).await;
        error(node.get("/v1/models"), 401, "invalid_api_key").await;
        let wrong = node.get("/v1/models").bearer_auth("guess");
        error(wrong, 401, "invalid_api_key").await;
        let right = node.get("/v1/models").bearer_auth(key.reveal());
        document(right.send().await.unwrap(), 200).await;
    });
}

#[test]
fn an_open_api_is_closed_to_web_pages() {
    on_a_node(Access::Open, async |node| {
        let foreign = || node.get("/v1/models").header("host", "evil.example");
        error(foreign(), 403, "foreign_host").await;
        let disguised = foreign().header("x-forwarded-host", "localhost");
        error(disguised, 403, "foreign_host").await;
    });
}

#[test]
fn what_a_request_survives_is_said_in_the_body_or_in_a_header_and_shown_in_its_session() {
    on_a_node(Access::Open, async |node| {
        let model = node.add_model().await;
        let path = "/v1/completions";
        let cases = [
            (None, None, "medium"),
            (Some("low"), None, "low"),
            (None, Some("none"), "none"),
            (Some("low"), Some("none"), "low"),
        ];
        for (body, header, expected) in cases {
            let body = json!({
                "model": model, "prompt": "hi", "max_tokens": 1, "fault_tolerance": body,
            });
            let mut request = node.post(path, &body);
            if let Some(level) = header {
                request = request.header("x-accel-fault-tolerance", level);
            }
            let answer = document(request.send().await.unwrap(), 200).await;
            let session = answer["id"].as_str().unwrap().trim_start_matches("cmpl-");
            let view = node.get(&format!("/api/v1/sessions/{session}")).send();
            let view = document(view.await.unwrap(), 200).await;
            assert_eq!(view["fault_tolerance"], expected, "{view}");
            assert_eq!(view["recoveries"], 0, "{view}");
        }
        let body = json!({"model": model, "prompt": "hi", "stream": true});
        let cases = [
            ("critical", 503, "too_few_peers"),
            ("high", 503, "too_few_replicas"),
        ];
        for (level, status, code) in cases {
            let request = node.post(path, &body);
            let request = request.header("x-accel-fault-tolerance", level);
            let refused = document(request.send().await.unwrap(), status).await;
            assert_eq!(refused["error"]["code"], code, "{refused}");
            assert!(refused["error"]["hint"].is_string(), "{refused}");
        }
    });
}

#[test]
fn a_chat_is_answered_whole_and_as_a_stream_with_the_same_tokens() {
    on_a_node(Access::Open, async |node| {
        let model = node.add_model().await;
        let mut body = json!({
            "model": model,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 5,
            "temperature": 0.9,
            "seed": 3,
            "logprobs": true,
            "top_logprobs": 2,
            "return_token_ids": true,
        });
        let chat = "/v1/chat/completions";
        let response = node.post(chat, &body).send().await.unwrap();
        let header = |name: &str| {
            let value = response.headers().get(name);
            value
                .unwrap_or_else(|| panic!("{name}"))
                .to_str()
                .unwrap()
                .to_owned()
        };
        let (session, route) = (header("x-accel-session"), header("x-accel-route"));
        assert!(route.starts_with(&node.node.peer_id()), "{route}");
        let whole = document(response, 200).await;
        assert_eq!(whole["id"], format!("chatcmpl-{session}"));
        let choice = &whole["choices"][0];
        let tokens = choice["token_ids"].as_array().unwrap();
        assert_eq!(whole["usage"]["completion_tokens"], tokens.len());
        let logprobs = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(logprobs.len(), tokens.len());
        assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);

        body["stream"] = json!(true);
        let text = node
            .post(chat, &body)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let chunks: Vec<Value> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect();
        let streamed: Vec<Value> = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"][0]["token_ids"].as_array().unwrap().clone())
            .collect();
        assert_eq!(&streamed, tokens, "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");

        let view = node
            .get(&format!("/api/v1/sessions/{session}"))
            .send()
            .await
            .unwrap();
        let view = document(view, 200).await;
        assert_eq!(view["tokens"], tokens.len(), "{view}");
        assert_eq!(view["route"][0]["first_layer"], 0);
    });
}

#[test]
fn a_text_is_continued_from_text_and_from_the_same_tokens() {
    on_a_node(Access::Open, async |node| {
        let model = node.add_model().await;
        let body = json!({"model": model, "prompt": [3, 4, 5], "max_tokens": 3, "temperature": 0});
        let answer = node.post("/v1/completions", &body).send().await.unwrap();
        let answer = document(answer, 200).await;
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(answer["usage"]["prompt_tokens"], 3);
        let listed = document(node.get("/v1/models").send().await.unwrap(), 200).await;
        assert_eq!(listed["data"][0]["id"], model);
        let plan = node
            .get(&format!("/api/v1/plan?model={model}"))
            .send()
            .await
            .unwrap();
        let plan = document(plan, 200).await;
        assert_eq!(plan["stages"][0]["first_layer"], 0, "{plan}");
        let shown = node
            .get(&format!("/api/v1/models/{model}"))
            .send()
            .await
            .unwrap();
        assert_eq!(document(shown, 200).await["architecture"], "llama");
    });
}

#[test]
fn a_client_that_leaves_suspends_its_session_and_gets_the_rest_when_it_comes_back() {
    on_a_node(Access::Open, async |node| {
        let model = node.add_model().await;
        let body = json!({
            "model": model, "prompt": "hi", "max_tokens": 450, "temperature": 0, "logprobs": 3,
            "stream": true, "stream_options": {"include_usage": true},
        });
        let mut response = node.post("/v1/completions", &body).send().await.unwrap();
        let session = response.headers()["x-accel-session"]
            .to_str()
            .unwrap()
            .to_owned();
        let mut seen = String::new();
        while seen.matches("\n\n").count() < 3 {
            let bytes = response.chunk().await.unwrap().unwrap();
            seen.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        drop(response);
        let path = format!("/api/v1/sessions/{session}");
        let state = loop {
            let view = document(node.get(&path).send().await.unwrap(), 200).await;
            match view["state"].as_str().unwrap() {
                "placing" | "prefill" | "decoding" | "recovering" => tokio::task::yield_now().await,
                ended => break ended.to_owned(),
            }
        };
        assert_eq!(state, "suspended");

        // From the beginning, and it ends as if nothing had happened.
        let stream = format!("{path}/stream");
        let text = async |request: RequestBuilder| {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["x-accel-session"], *session);
            response.text().await.unwrap()
        };
        let all = text(node.get(&stream)).await;
        let whole = all.matches("\n\n").count();
        assert!(
            all.starts_with(&seen),
            "{seen}\n is not the beginning of\n{all}"
        );
        assert!(all.ends_with("data: [DONE]\n\n"), "{all}");
        assert!(all.contains("\"completion_tokens\":"), "{all}");
        for index in [0, 7, whole - 4] {
            let id = format!("{session}:{index}");
            let (_, behind) = all.split_once(&format!("id: {id}\n")).unwrap();
            let (_, behind) = behind.split_once("\n\n").unwrap();
            let header = |request: RequestBuilder| request.header("last-event-id", &id);
            let again = node.http.post(node.url("/v1/completions")).body("whatever");
            for request in [node.get(&stream), again] {
                assert_eq!(text(header(request)).await, behind, "behind {index}");
            }
        }
        let view = document(node.get(&path).send().await.unwrap(), 200).await;
        assert_eq!(view["state"], "done", "{view}");
    });
}

#[test]
fn whoever_comes_back_with_nonsense_is_told_what_is_wrong() {
    on_a_node(Access::Open, async |node| {
        let model = node.add_model().await;
        let body = |stream: bool| json!({"model": model, "prompt": [3, 4, 5], "max_tokens": 2, "stream": stream});
        let ask = async |body: &Value| {
            let answer = node.post("/v1/completions", body).send().await.unwrap();
            let session = answer.headers()["x-accel-session"].clone();
            answer.bytes().await.unwrap();
            session.to_str().unwrap().to_owned()
        };
        let (streamed, whole) = (ask(&body(true)).await, ask(&body(false)).await);
        let mut low = body(true);
        low["fault_tolerance"] = json!("low");
        let low = ask(&low).await;
        let unknown = "00112233445566778899aabbccddeeff";
        let again = |id: &str| {
            let request = node.http.post(node.url("/v1/completions"));
            request.header("last-event-id", id).body("{")
        };
        for malformed in ["", "nonsense", unknown, &format!("{unknown}:x")] {
            error(again(malformed), 400, "invalid_value").await;
        }
        let told = error(again(&format!("{unknown}:0")), 404, "session_not_found").await;
        assert!(!told["hint"].as_str().unwrap().is_empty());
        let too_high = error(again(&format!("{streamed}:2")), 400, "invalid_value").await;
        assert_eq!(too_high["param"], "Last-Event-ID");
        for kept in [&whole, &low] {
            error(again(&format!("{kept}:0")), 409, "session_not_resumable").await;
        }
        let stream = format!("/api/v1/sessions/{unknown}/stream");
        error(node.get(&stream), 404, "session_not_found").await;
        let other = node
            .get(&stream)
            .header("last-event-id", format!("{streamed}:0"));
        error(other, 400, "invalid_value").await;
        error(node.get("/api/v1/sessions/x/stream"), 400, "invalid_value").await;
    });
}
