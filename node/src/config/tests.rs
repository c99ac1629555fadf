use super::*;

fn no_env(_: &str) -> Option<String> {
    None
}

fn toml(text: &str) -> (tempfile::TempDir, Flags) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("accel.toml");
    std::fs::write(&path, text).unwrap();
    let flags = Flags {
        config: Some(path),
        ..Flags::default()
    };
    (dir, flags)
}

#[test]
fn without_any_source_the_defaults_hold() {
    let settings = Settings::load_with(&Flags::default(), no_env).unwrap();
    assert_eq!(settings.api_addr().unwrap().to_string(), DEFAULT_API);
    assert_eq!(settings.listen, [DEFAULT_LISTEN]);
    assert!(settings.join.is_empty() && settings.threads.is_none());
    assert_eq!(settings.fault_tolerance, FaultTolerance::Medium);
    assert!(settings.warm_stand_ins);
    assert_eq!(settings.audit_share, 1);
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let (_dir, mut flags) = toml("threads = 1\nmax_layers = 1\nmemory = \"1G\"\n");
    let env = |name: &str| match name {
        "ACCEL_THREADS" => Some("2".to_owned()),
        "ACCEL_MAX_LAYERS" => Some("2".to_owned()),
        "ACCEL_FAULT_TOLERANCE" => Some("low".to_owned()),
        "ACCEL_WARM_STAND_INS" => Some("false".to_owned()),
        "ACCEL_AUDIT_SHARE" => Some("7".to_owned()),
        "ACCEL_RESUME_WINDOW" => Some("60".to_owned()),
        "ACCEL_BREAKER_SECONDS" => Some("7".to_owned()),
        _ => None,
    };
    flags.max_layers = Some(3);
    let settings = Settings::load_with(&flags, env).unwrap();
    assert_eq!(
        settings.memory,
        Some(Size(1 << 30)),
        "only the file says it"
    );
    assert_eq!(
        settings.threads,
        Some(2),
        "the environment wins over the file"
    );
    assert_eq!(settings.max_layers, Some(3), "the flag wins over both");
    assert_eq!(settings.fault_tolerance, FaultTolerance::Low);
    assert!(!settings.warm_stand_ins);
    assert_eq!(settings.audit_share, 7);
    assert_eq!(settings.resume_window, Some(60));
    assert_eq!(settings.breaker_seconds, Some(7));
}

#[test]
fn the_form_of_the_cache_comes_from_any_source() {
    let settings = Settings::load_with(&Flags::default(), no_env).unwrap();
    assert_eq!(settings.kv, KvFormat::F16);
    let (_dir, mut flags) = toml("kv = \"q8\"\n");
    assert_eq!(
        Settings::load_with(&flags, no_env).unwrap().kv,
        KvFormat::Q8
    );
    let env = |name: &str| (name == "ACCEL_KV").then(|| "f16".to_owned());
    assert_eq!(Settings::load_with(&flags, env).unwrap().kv, KvFormat::F16);
    flags.kv = Some(KvFormat::Q8);
    assert_eq!(Settings::load_with(&flags, env).unwrap().kv, KvFormat::Q8);
    let odd = |name: &str| (name == "ACCEL_KV").then(|| "8".to_owned());
    let error = Settings::load_with(&Flags::default(), odd).unwrap_err();
    assert!(error.to_string().contains("`f16` or `q8`"), "{error}");
}

#[test]
fn a_list_of_a_stronger_source_replaces_the_weaker_one() {
    let (_dir, flags) = toml("listen = [\"/ip4/1.1.1.1/tcp/1\"]\n");
    let env = |name: &str| {
        (name == "ACCEL_LISTEN").then(|| "/ip4/2.2.2.2/tcp/2, /ip4/3.3.3.3/tcp/3".to_owned())
    };
    let settings = Settings::load_with(&flags, env).unwrap();
    assert_eq!(
        settings.listen,
        ["/ip4/2.2.2.2/tcp/2", "/ip4/3.3.3.3/tcp/3"]
    );
}

#[test]
fn a_swarm_whose_name_is_a_number_stays_a_name() {
    let env = |name: &str| (name == "ACCEL_SWARM").then(|| "42".to_owned());
    let settings = Settings::load_with(&Flags::default(), env).unwrap();
    assert_eq!(settings.swarm.as_deref(), Some("42"));
}

#[test]
fn an_unknown_key_is_an_error_that_lists_the_known_ones() {
    let (_dir, flags) = toml("thread = 4\n");
    let error = Settings::load_with(&flags, no_env).unwrap_err().to_string();
    assert!(error.contains("unknown key `thread`"), "{error}");
    assert!(error.contains("accel.toml"), "{error}");
    for key in KEYS {
        assert!(error.contains(key), "{key} is missing in: {error}");
    }
}

#[test]
fn the_list_of_known_keys_is_the_list_of_settings() {
    let (_dir, flags) = toml("not_a_key = 1\n");
    let figment = Figment::from(Toml::file_exact(flags.config.unwrap()));
    let error = figment.extract::<Settings>().unwrap_err();
    let Kind::UnknownField(_, known) = error.kind else {
        panic!("expected an unknown field, got {error}");
    };
    let mut known = known.to_vec();
    let mut keys = KEYS.to_vec();
    known.sort_unstable();
    keys.sort_unstable();
    assert_eq!(known, keys);
}

#[test]
fn values_out_of_range_name_their_key() {
    let cases = [
        ("threads = 0", "threads"),
        ("threads = 100000", "threads"),
        ("max_layers = 0", "max_layers"),
        ("audit_share = 101", "audit_share"),
        ("resume_window = 0", "resume_window"),
        ("breaker_failures = 0", "breaker_failures"),
        ("breaker_trials = -1", "breaker_trials"),
        ("resume_window = 10000000", "resume_window"),
        ("memory = \"lots\"", "memory"),
        ("memory = -1", "memory"),
        ("api = \"nowhere\"", "api"),
        ("threads = \"four\"", "threads"),
        ("device = \"cuda\"", "CPU for now"),
        ("device = \"abacus\"", "not one of"),
        (
            "fault_tolerance = \"some\"",
            "none, low, medium, high and critical",
        ),
        ("kv = \"q4\"", "kv"),
        ("swarm = \"a\"\nswarm_key = \"b\"", "not both"),
    ];
    for (text, expected) in cases {
        let (_dir, flags) = toml(text);
        let error = Settings::load_with(&flags, no_env).expect_err(text);
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_missing_file_is_an_error_and_not_an_empty_one() {
    let flags = Flags {
        config: Some("/nowhere/accel.toml".into()),
        ..Flags::default()
    };
    let error = Settings::load_with(&flags, no_env).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
}

#[test]
fn an_address_may_be_written_as_commands_are_given_it() {
    for api in [
        "localhost:8420",
        "http://127.0.0.1:8420",
        "http://localhost:8420/",
    ] {
        let flags = Flags {
            api: Some(api.into()),
            ..Flags::default()
        };
        let settings = Settings::load_with(&flags, no_env).unwrap();
        assert_eq!(
            settings.api_addr().unwrap().to_string(),
            DEFAULT_API,
            "{api}"
        );
    }
}
