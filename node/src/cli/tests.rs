use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_contract_is_understood() {
    let lines = [
        "up --data D --api 127.0.0.1:0 --listen /ip4/127.0.0.1/tcp/0 --join a --join b \
         --swarm-key F --device cpu --threads 2 --kv q8 --memory 2G --max-layers 10 --ready-file R",
        "up --config F --swarm friends",
        "model add PATH",
        "model add hf:REPO/FILE --json",
        "model ls",
        "model show NAME",
        "model pin NAME",
        "model unpin NAME",
        "model rm NAME",
        "run MODEL PROMPT --max-tokens 5 --temperature 0.5 --seed 7",
        "chat MODEL",
        "peers --api 127.0.0.1:1",
        "plan MODEL --json",
        "swarm init --out F",
        "swarm invite",
        "key --data D",
        "bench MODEL --prompt 1 --gen 1 --threads 1 --batch 1 --kv q8 --json",
        "eval MODEL --reference F --threads 1 --json",
        "eval MODEL --text F --chunk 256 --threads 1 --kv f16 --json",
        "demo",
    ];
    for line in lines {
        let words = std::iter::once("accel").chain(line.split_whitespace());
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("accel {line}: {error}");
        }
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    for line in [
        "up --swarm a --swarm-key b",
        "up --memory lots",
        "up --threads -1",
        "up --kv q4",
        "bench MODEL --kv 8",
        "run MODEL",
        "swarm init",
        "eval MODEL",
        "eval MODEL --reference F --text F",
        "eval MODEL --reference F --chunk 256",
        "fly",
    ] {
        let words = std::iter::once("accel").chain(line.split_whitespace());
        assert!(Cli::try_parse_from(words).is_err(), "accel {line}");
    }
}
