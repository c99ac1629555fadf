//! The threads that compute one stage.
//!
//! A step is hundreds of short operators, each cut into tasks. Waking a sleeping thread takes
//! longer than most of them, so the workers spin for a short while after each operator and only
//! then go to sleep. The caller works too. Each thread begins with a share of its own, so that it
//! reads on where it was; who is done takes from the others' shares. A worker that comes late finds the job closed and
//! waits for the next one: nobody waits for a thread that the system has not given a core.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of spinning before a worker gives its core to others, some ten microseconds.
const SPINS: u32 = 2_000;
/// Times that it offers its core before it goes to sleep.
const YIELDS: u32 = 20;

/// Bits of [`Shared::gate`]: the number of the job, whether it is open, who works on it.
const JOB: u64 = 1 << 32;
const OPEN: u64 = 1 << 31;
const WORKING: u64 = OPEN - 1;

/// A function of the number of a task, and how many tasks there are.
#[derive(Clone, Copy)]
struct Job {
    function: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

/// A counter with a line of the cache to itself.
#[derive(Default)]
#[repr(align(64))]
struct Taken(AtomicUsize);

struct Shared {
    /// See [`JOB`]. A worker enters a job by adding one while it is open.
    gate: AtomicU64,
    /// Written by the caller while the gate is closed and nobody works.
    job: UnsafeCell<Option<Job>>,
    /// How many tasks were taken of each thread's share.
    taken: Box<[Taken]>,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the one caller (`Pool::run` takes `&mut self`) while no worker
// has entered, and read only by workers that have; the gate orders the two.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer inside is to a `Sync` function.
unsafe impl Send for Shared {}

/// See the module.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    is_pinned: bool,
}

impl Pool {
    /// Starts the threads; the caller of [`Pool::run`] is one of the `threads`.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            taken: (0..threads.max(1)).map(|_| Taken::default()).collect(),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            shared,
            workers: Vec::new(),
            // Only when the threads fill the machine: several smaller stages would otherwise
            // crowd on the first cores.
            is_pinned: threads > 1 && threads == crate::hardware::cores(),
        };
        let is_pinned = pool.is_pinned;
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let started = std::thread::Builder::new()
                .name(format!("accel-compute-{worker}"))
                .spawn(move || {
                    if is_pinned {
                        pin::to_core(worker);
                    }
                    shared.work(worker);
                });
            // Dropping the pool ends those that were started before a failure.
            pool.workers.push(started?);
        }
        Ok(pool)
    }

    /// Threads that compute, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Keeps the caller off the workers' cores until the guard is dropped. Without this the
    /// system may leave it on the core of a worker for a whole step.
    pub(crate) fn pin_caller(&self) -> Option<pin::Guard> {
        self.is_pinned.then(pin::caller).flatten()
    }

    /// Calls `function` once for each number below `tasks`, on all threads. A panic in a task
    /// comes out here, after the others have ended.
    pub(crate) fn run(&mut self, tasks: usize, function: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || tasks < 2 {
            for task in 0..tasks {
                function(task);
            }
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed; the job is closed and left by all workers before
        // this function returns, so nobody calls the function later.
        let function: *const (dyn Fn(usize) + Sync) = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(function)
        };
        let job = Job { function, tasks };
        // SAFETY: the gate is closed and nobody is inside; see `Shared`.
        unsafe { *shared.job.get() = Some(job) };
        for taken in &shared.taken {
            taken.0.store(0, Ordering::Relaxed);
        }
        let number = shared.gate.load(Ordering::Relaxed) / JOB;
        shared
            .gate
            .store(((number + 1) % JOB * JOB) | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = shared.bed.lock().unwrap_or_else(PoisonError::into_inner);
            shared.bell.notify_all();
        }
        shared.take_tasks(job, 0);
        shared.gate.fetch_and(!OPEN, Ordering::Relaxed);
        let mut turns = 0;
        while shared.gate.load(Ordering::Acquire) & WORKING != 0 {
            turns += 1;
            wait_a_little(turns);
        }
        let mut panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = panic.take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let bed = self.shared.bed.lock();
            let _guard = bed.unwrap_or_else(PoisonError::into_inner);
            self.shared.bell.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so it ends in order.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        let mut last = self.gate.load(Ordering::Acquire) / JOB;
        while self.wait_for_job(&mut last) {
            // SAFETY: this worker has entered the job, so the caller does not write.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job {
                self.take_tasks(job, worker);
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Enters the next job that is open; gives false when the pool ends.
    fn wait_for_job(&self, last: &mut u64) -> bool {
        let mut turns = 0;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let gate = self.gate.load(Ordering::Acquire);
            if gate & OPEN != 0 && gate / JOB != *last {
                let entered =
                    self.gate
                        .compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    *last = gate / JOB;
                    return true;
                }
                continue;
            }
            turns += 1;
            if turns <= SPINS + YIELDS {
                wait_a_little(turns);
            } else {
                self.sleep(*last);
                turns = 0;
            }
        }
    }

    /// Sleeps until there is a job after `last`.
    fn sleep(&self, last: u64) {
        let mut guard = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        // The caller opens the gate and then looks for sleepers; here it is the other way round,
        // so one of the two sees the other.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !self.stop.load(Ordering::SeqCst) {
            let gate = self.gate.load(Ordering::SeqCst);
            if gate & OPEN != 0 && gate / JOB != last {
                break;
            }
            guard = self
                .bell
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes the tasks of the own share, then what is left of the others'.
    fn take_tasks(&self, job: Job, thread: usize) {
        // SAFETY: the caller of `run` keeps the function alive until all have left the job.
        let function = unsafe { &*job.function };
        let threads = self.taken.len();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for owner in (thread..threads).chain(0..thread) {
                let start = job.tasks * owner / threads;
                let end = job.tasks * (owner + 1) / threads;
                loop {
                    let task = start + self.taken[owner].0.fetch_add(1, Ordering::Relaxed);
                    if task >= end {
                        break;
                    }
                    function(task);
                }
            }
        }));
        if let Err(panic) = outcome {
            // Nobody takes another task of this job.
            for taken in &self.taken {
                taken.0.store(job.tasks, Ordering::Relaxed);
            }
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(panic);
        }
    }
}

fn wait_a_little(turns: u32) {
    if turns <= SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

#[cfg(target_os = "linux")]
mod pin {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// Gives the thread back the cores that it had before.
    pub(crate) struct Guard(CpuSet);

    impl Drop for Guard {
        fn drop(&mut self) {
            // It was allowed before; if it no longer is, the system has chosen other cores.
            let _ = sched_setaffinity(None, &self.0);
        }
    }

    /// Keeps the calling thread on the first core.
    pub(super) fn caller() -> Option<Guard> {
        let before = sched_getaffinity(None).ok()?;
        to_core(0);
        Some(Guard(before))
    }

    /// Keeps the calling thread on one of the cores that the process may use.
    pub(super) fn to_core(index: usize) {
        let Ok(allowed) = sched_getaffinity(None) else {
            return;
        };
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let Some(core) = cores.nth(index) else {
            return;
        };
        let mut own = CpuSet::new();
        own.set(core);
        if let Err(error) = sched_setaffinity(None, &own) {
            tracing::debug!(%error, core, "a compute thread could not be pinned");
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod pin {
    /// Other systems have no such call, or only hints.
    pub(crate) struct Guard;

    pub(super) fn caller() -> Option<Guard> {
        None
    }

    pub(super) fn to_core(_: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                let is_once = |count: &AtomicUsize| count.load(Ordering::Relaxed) == 1;
                assert!(
                    counts.iter().all(is_once),
                    "{threads} threads, {tasks} tasks"
                );
            }
        }
    }

    #[test]
    fn workers_that_fell_asleep_are_woken() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let done = AtomicUsize::new(0);
            pool.run(64, &|_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 64);
        }
    }

    #[test]
    fn a_panic_comes_out_of_run_and_the_pool_goes_on() {
        let mut pool = Pool::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|task| assert!(task != 50, "on purpose"));
        }));
        assert!(outcome.is_err());
        let done = AtomicUsize::new(0);
        pool.run(10, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 10);
    }
}
