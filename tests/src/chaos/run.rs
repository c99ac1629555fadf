//! The command: which trials, on which nodes, and where the report goes.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use super::{
    baseline::Baseline,
    faults::{self, Fault},
    net::{self, Net, Place},
    plan::{Plan, Shape, plan},
    report::{Report, machine},
    rpc_peers,
    swarm::{Size, Swarm},
    trial::{self, Outcome},
};
use crate::{models, models::Model};

/// Trials whose nodes are shared: within a batch those of one size come after each other.
const BATCH: u32 = 60;

/// Seeded trials in which nodes are killed, stopped and cut off in the middle of answers.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// How many trials
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub trials: u32,
    /// What the trials are drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Directory of chaos.md, chaos.json and the logs of failed trials
    #[arg(long, value_name = "DIR", default_value = "chaos-report")]
    pub out: PathBuf,
    /// GGUF to compute [default: SmolLM2 where get-models put it]
    #[arg(long, value_name = "PATH", conflicts_with = "generated")]
    pub model: Option<PathBuf>,
    /// Compute a small generated model, which answers in no time
    #[arg(long)]
    pub generated: bool,
    /// These kinds of fault only
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    pub only: Vec<String>,
    /// These trials only, on nodes that serve no other
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub trial: Vec<u32>,
    /// Begin no batch of 60 trials after so many minutes
    #[arg(long, value_name = "N")]
    pub minutes: Option<u64>,
    /// Stay on loopback, without network namespaces
    #[arg(long)]
    pub loopback: bool,
    /// Kill one of two RPC servers of llama.cpp as well, and report what happens
    #[arg(long)]
    pub rpc_peers: bool,
    /// Directory of llama.cpp's programs [default: where build-llama-cpp puts them]
    #[arg(long, value_name = "DIR")]
    pub llama_bin: Option<PathBuf>,
}

/// Runs the command and gives its exit code: 0 if all is well, 1 if a trial failed.
pub async fn run(options: Options) -> Result<u8> {
    fs::create_dir_all(&options.out).context("cannot make the directory of the report")?;
    let place = match options.loopback {
        true => Place::Loopback("--loopback was given".to_owned()),
        false => net::enter().await?,
    };
    let (net, why) = match place {
        Place::Done(code) => return Ok(code),
        Place::Inside => (Some(Net::open()?), String::new()),
        Place::Loopback(why) => (None, why),
    };
    tokio::select! {
        code = inside(options, net, &why) => code,
        // Dropping the other future ends every process that it started.
        () = net::told_to_stop() => Ok(net::INTERRUPTED),
    }
}

async fn inside(options: Options, net: Option<Net>, why: &str) -> Result<u8> {
    let model = chosen_model(&options)?;
    let (chosen, left_out) = chosen_faults(&options, net.is_some(), why)?;
    let shape = shape(&options, &model, &chosen);
    let mut report = Report::new(command_line(), options.seed, &model, machine()?);
    report.replay = replay(&options, &chosen);
    report.faults = chosen
        .iter()
        .map(|fault| (fault.name(), fault.about()))
        .collect();
    report.left_out = left_out;
    report.write(&options.out)?;
    let mut stage = Stage {
        baseline: Baseline::start(&model).await?,
        swarm: None,
        usual: BTreeMap::new(),
        net,
        model,
        out: options.out.clone(),
    };
    let mut batch = 0;
    for plan in plans(&options, &shape) {
        // Only between batches, of which each has all sizes.
        if plan.trial / BATCH != batch {
            batch = plan.trial / BATCH;
            if is_late(&options, report.started) {
                report.stopped_before = Some(batch * BATCH);
                break;
            }
        }
        let outcome = stage.play(&plan).await;
        tell(&outcome, report.outcomes.len() + 1);
        report.outcomes.push(outcome);
        report.write(&options.out)?;
    }
    drop(stage);
    if options.rpc_peers {
        report.rpc_peers = Some(rpc_peers::run(options.llama_bin.as_deref()).await);
        report.write(&options.out)?;
    }
    println!("{}", options.out.join("chaos.md").display());
    Ok(u8::from(report.failed() > 0))
}

/// What trials are played on.
struct Stage {
    baseline: Baseline,
    swarm: Option<Swarm>,
    /// The bytes that one position needs without faults, on nodes of each size.
    usual: BTreeMap<Size, f64>,
    net: Option<Net>,
    model: Model,
    out: PathBuf,
}

impl Stage {
    async fn play(&mut self, plan: &Plan) -> Outcome {
        let outcome = match self.try_play(plan).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::unplayed(plan, &error),
        };
        if outcome.healed_ms.is_none() || !outcome.problems.is_empty() {
            // What went wrong once must not spoil other trials.
            self.swarm = None;
        }
        outcome
    }

    async fn try_play(&mut self, plan: &Plan) -> Result<Outcome> {
        let size = Size::of(plan);
        if self.swarm.as_ref().is_none_or(|swarm| swarm.size != size) {
            // Ended before others start: this machine may hold just so many.
            self.swarm = None;
            let swarm = Swarm::start(size, &self.model, self.net.as_mut()).await?;
            self.swarm = Some(swarm);
        }
        let swarm = self.swarm.as_mut().context("a swarm")?;
        let (baseline, model) = (&mut self.baseline, &self.model.name);
        let usual = match self.usual.get(&size) {
            Some(usual) => *usual,
            None => trial::usual_bytes(plan, swarm, baseline, model).await?,
        };
        self.usual.insert(size, usual);
        let logs = self.out.join(format!("trial-{}", plan.trial));
        trial::play(plan, swarm, baseline, model, usual, &logs).await
    }
}

/// The trials in the order in which they are played: batch by batch, and in a batch by size.
fn plans(options: &Options, shape: &Shape) -> Vec<Plan> {
    if !options.trial.is_empty() {
        let numbers = options.trial.iter();
        return numbers
            .map(|trial| plan(options.seed, *trial, shape))
            .collect();
    }
    let mut plans: Vec<Plan> = (0..options.trials)
        .map(|trial| plan(options.seed, trial, shape))
        .collect();
    plans.sort_by_key(|plan| (plan.trial / BATCH, Size::of(plan), plan.trial));
    plans
}

fn is_late(options: &Options, started: Instant) -> bool {
    let limit = options
        .minutes
        .map(|minutes| Duration::from_secs(60 * minutes));
    limit.is_some_and(|limit| started.elapsed() > limit)
}

type LeftOut = Vec<(&'static str, String)>;

/// The kinds that are drawn from, and those that cannot be here, with the reason.
fn chosen_faults(
    options: &Options,
    namespaces: bool,
    why: &str,
) -> Result<(Vec<&'static dyn Fault>, LeftOut)> {
    let (mut chosen, mut left_out): (Vec<&dyn Fault>, LeftOut) = (Vec::new(), Vec::new());
    for fault in faults::ALL {
        let wanted =
            options.only.is_empty() || options.only.iter().any(|name| name == fault.name());
        if wanted && fault.needs_namespaces() && !namespaces {
            left_out.push((fault.name(), format!("it needs namespaces, and {why}")));
        } else if let Some(why) = fault.obstacle().filter(|_| wanted) {
            left_out.push((fault.name(), why));
        } else if wanted {
            chosen.push(fault);
        }
    }
    for name in &options.only {
        faults::named(name)?;
    }
    if !options.only.is_empty() && !left_out.is_empty() {
        // Other kinds would make other trials of the same numbers.
        bail!("asked for, but impossible here: {left_out:?}");
    }
    Ok((chosen, left_out))
}

fn shape(options: &Options, model: &Model, chosen: &[&'static dyn Fault]) -> Shape {
    // Passing faults end well before the 30 seconds for which a session waits for a peer.
    let (answer, long_answer, long_prompt, longest_ms) = match options.generated {
        true => ((300, 600), (2_000, 3_000), 2_000, 3_500),
        false => ((50, 110), (180, 260), 500, 8_000),
    };
    Shape {
        layers: model.layers as u32,
        answer,
        long_answer,
        prompt: (4, 60),
        long_prompt,
        longest_ms,
        faults: chosen.iter().map(|fault| faults::kind(*fault)).collect(),
    }
}

fn chosen_model(options: &Options) -> Result<Model> {
    match &options.model {
        Some(path) => models::from_file(path),
        None if options.generated => models::talkative(),
        None => models::smollm2()?.context("run tests/scripts/get-models, or use --generated"),
    }
}

fn command_line() -> String {
    let args: Vec<String> = env::args().skip(1).collect();
    format!("{} {}", cargo_run(), args.join(" "))
}

fn cargo_run() -> &'static str {
    match cfg!(debug_assertions) {
        true => "cargo run -p accel-tests --bin chaos --",
        false => "cargo run --release -p accel-tests --bin chaos --",
    }
}

/// The command that plays one trial again, but for its number. The kinds are always named, because
/// a machine that has others would draw other trials.
fn replay(options: &Options, chosen: &[&'static dyn Fault]) -> String {
    let names: Vec<&str> = chosen.iter().map(|fault| fault.name()).collect();
    let model = match &options.model {
        Some(path) => format!(" --model {}", path.display()),
        None if options.generated => " --generated".to_owned(),
        None => String::new(),
    };
    let (seed, names) = (options.seed, names.join(","));
    format!(
        "{} --seed {seed} --only {names}{model} --trial ",
        cargo_run()
    )
}

fn tell(outcome: &Outcome, count: usize) {
    let faults: Vec<&str> = outcome.blows.iter().map(|blow| blow.fault).collect();
    let word = if outcome.problems.is_empty() {
        "good"
    } else {
        "FAILED"
    };
    let healed = match outcome.healed_ms {
        Some(after) => format!("healed after {after:.0} ms"),
        None => "not healed".to_owned(),
    };
    println!(
        "{count}: trial {} {word}: {} nodes, {} answers, {}, {}; {:.1} s, {healed}",
        outcome.plan.trial,
        outcome.plan.nodes,
        outcome.sessions.len(),
        outcome.plan.fault_tolerance,
        faults.join(" + "),
        outcome.took_ms / 1000.0,
    );
    for problem in &outcome.problems {
        println!("    {}", problem.chars().take(600).collect::<String>());
    }
}

/// Where a report is written in `dir`.
pub fn files(dir: &Path) -> [PathBuf; 2] {
    [dir.join("chaos.md"), dir.join("chaos.json")]
}
