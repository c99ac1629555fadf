use accel_inference::bench::{BenchOptions, bench};
use accel_inference::{LoadOptions, eval};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let path = std::path::Path::new(&a[2]);
    let load = LoadOptions { threads: Some(2), ..Default::default() };
    if a[1] == "eval" {
        println!("{:?}", eval::evaluate(path, std::path::Path::new(&a[3]), &load, &|_, _| {}));
    } else {
        let n = |i: usize| a[i].parse().unwrap();
        println!("{:?}", bench(path, &BenchOptions { prompt: n(3), generate: n(4), batch: n(5), load }));
    }
}
