//! What the trials found, in percentiles.

use serde_json::{Map, Value, json};

use crate::trial::Told;

/// The columns, in milliseconds: a name and what of a trial it shows.
type Column = (&'static str, fn(&Told) -> Option<f64>);

const COLUMNS: [Column; 7] = [
    ("loss to notice", |told| Some(told.noticed)),
    ("placement", |told| told.place),
    ("rebuilding", |told| told.rebuild),
    ("stall", |told| told.stall),
    ("longest silence of the stream", |told| Some(told.silence)),
    ("recoveries", |told| Some(told.recoveries)),
    ("MiB fetched by the stand-ins", |told| {
        Some(told.fetched_mib)
    }),
];

/// See the module.
#[derive(Default)]
pub struct Figures(Vec<Told>);

impl Figures {
    pub fn add(&mut self, told: &Told) {
        self.0.push(told.clone());
    }

    /// As a table for people; times are in milliseconds.
    pub fn markdown(&self) -> String {
        let mut lines = vec![
            "| ms | p50 | p95 | p99 | most |".to_owned(),
            "|---|---|---|---|---|".to_owned(),
        ];
        for (name, column) in COLUMNS {
            let values = self.values(column);
            let cells = [50, 95, 99, 100].map(|percent| match rank(&values, percent) {
                Some(value) => format!("{value:.0}"),
                None => "–".to_owned(),
            });
            lines.push(format!("| {name} | {} |", cells.join(" | ")));
        }
        lines.join("\n")
    }

    pub fn json(&self) -> Value {
        let mut all = Map::new();
        for (name, column) in COLUMNS {
            let values = self.values(column);
            let percentiles = json!({
                "p50": rank(&values, 50),
                "p95": rank(&values, 95),
                "p99": rank(&values, 99),
                "all": values,
            });
            all.insert(name.to_owned(), percentiles);
        }
        Value::Object(all)
    }

    /// In order of size.
    fn values(&self, column: fn(&Told) -> Option<f64>) -> Vec<f64> {
        let mut values: Vec<f64> = self.0.iter().filter_map(column).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

/// The smallest value that so many percent do not exceed.
pub fn rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied()
}
