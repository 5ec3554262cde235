//! `attn probe`: attention as a look-up, for teaching and for tests.

use super::device::{Choice, DeviceArgs};
use super::{Status, print};
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::io::{Target, tensors};
use crate::ops::softmax_attention::SoftmaxAttention;
use crate::plan::{Plan, PlanOptions};
use crate::probe::{Found, Goal, Keys, Query, Replacement, bounds};
use crate::run_spec::Given;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Find queries and keys that make attention return what you choose
///
/// Keys k (n,d) and perhaps values v (n,m) come from --input, numbered from 0. Attention gives the softmax of
/// scale·q·k, times v. What is asked is done by the shortest query with the gap --gap between scores, where one exists,
/// and looked up with the real kernel; where none exists, the keys that stand in the way are named, and the exit code is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  echo '{\"k\": [[1,0,0],[0,1,0],[0,0,1],[-1,-1,0]], \"v\": [[10],[20],[30],[40]]}' > memory.json
  attn probe select --input memory.json --key 2
  attn probe identity --input memory.json
  attn probe average --input memory.json --keys 0,1
  attn probe replace-key --input memory.json --key 2 --query=300,400,0 --goal return --unit-length
  attn probe query --input memory.json --query=3,3,-2")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// A query that returns one value
    Select {
        /// Its key
        #[arg(long, value_name = "I")]
        key: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Queries that return each value
    Identity {
        #[command(flatten)]
        common: Common,
    },
    /// A query that averages over some values, or all
    Average {
        /// Their keys [default: all]
        #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1)]
        keys: Vec<usize>,
        #[command(flatten)]
        common: Common,
    },
    /// A key in place of another, for a query that stays as it is
    ReplaceKey {
        /// The key to be replaced
        #[arg(long, value_name = "J")]
        key: usize,
        /// The query: d numbers
        #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1, allow_hyphen_values = true)]
        query: Vec<f64>,
        /// What the query shall do: average over the new key and what it scored highest among the others, or return its value
        #[arg(long, value_enum, default_value_t = Goal::Return, value_name = "average|return")]
        #[arg(hide_possible_values = true)]
        goal: Goal,
        /// The new key has length 1
        #[arg(long)]
        unit_length: bool,
        #[command(flatten)]
        common: Common,
    },
    /// What a query returns
    Query {
        /// The query: d numbers
        #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1, allow_hyphen_values = true)]
        query: Vec<f64>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Keys `k` (n,d) and perhaps values `v` (n,m): a safetensors file, or JSON such as {"k": [[1,0],[0,1]], "v": [[5],[7]]}
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Factor of the scores
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_hyphen_values = true)]
    scale: f64,
    /// How far the score of what is chosen shall exceed the others
    #[arg(long, value_name = "X", default_value_t = 100.0)]
    gap: f64,
    /// Also write what was found here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Keys, values and where to look up.
struct Memory {
    keys: Keys,
    values: Option<Vec<Vec<f64>>>,
    device: Arc<dyn Device>,
}

/// What attention gave.
struct Looked {
    scores: Vec<f64>,
    weights: Vec<f64>,
    value: Option<Vec<f64>>,
}

/// Runs the command.
///
/// # Errors
/// If the file or a flag will not do, or the device fails.
pub fn main(args: Args) -> Result<Status> {
    let mut text = String::new();
    let (common, found, all_possible) = match &args.command {
        Command::Select { key, common } => {
            let memory = Memory::open(common)?;
            let (json, possible) = memory.average(&format!("select {key}"), &[*key], common.gap, &mut text)?;
            (common, json, possible)
        }
        Command::Identity { common } => {
            let memory = Memory::open(common)?;
            let (mut rows, mut all) = (Vec::new(), true);
            for key in 0..memory.keys.rows().len() {
                let (json, possible) = memory.average(&format!("select {key}"), &[key], common.gap, &mut text)?;
                rows.push(json);
                all &= possible;
            }
            (common, json!({ "queries": rows }), all)
        }
        Command::Average { keys, common } => {
            let memory = Memory::open(common)?;
            let all: Vec<usize> = (0..memory.keys.rows().len()).collect();
            let keys = if keys.is_empty() { &all } else { keys };
            let names: Vec<String> = keys.iter().map(usize::to_string).collect();
            let name = format!("average {}", names.join(", "));
            let (json, possible) = memory.average(&name, keys, common.gap, &mut text)?;
            (common, json, possible)
        }
        Command::ReplaceKey { key, query, goal, unit_length, common } => {
            let memory = Memory::open(common)?;
            let (json, possible) = memory.replace(*key, query, *goal, *unit_length, common.gap, &mut text)?;
            (common, json, possible)
        }
        Command::Query { query, common } => {
            let memory = Memory::open(common)?;
            memory.check_query(query)?;
            let looked = memory.keys(&memory.keys, query)?;
            looked.show(&mut text);
            (common, looked.to_json(), true)
        }
    };
    if let Some(path) = &common.json {
        Target::new(path)?.write(|w| writeln!(w, "{found:#}"))?;
    }
    print(text)?;
    Ok(if all_possible { Status::Done } else { Status::Failed })
}

impl Memory {
    fn open(common: &Common) -> Result<Memory> {
        let (keys, values) = read(&common.input)?;
        let of_file = |e| match e {
            Error::Argument { what, problem, remedy } if what == "k" => {
                Error::file(&common.input, format!("tensor `k` {problem}"), remedy)
            }
            other => other,
        };
        let keys = Keys::new(keys, common.scale).map_err(of_file)?;
        if let Some(values) = &values {
            let m = values.first().map_or(0, Vec::len);
            if values.len() != keys.rows().len() || m == 0 || values.iter().any(|v| v.len() != m) {
                let problem = "tensor `v` is not one row of numbers for each key";
                return Err(Error::file(&common.input, problem, "give n rows of m numbers"));
            }
        }
        // The oracle's precision, where the device has it.
        let precision = match common.device.device {
            Choice::Auto | Choice::Cpu => Precision::F64,
            _ => Precision::F32,
        };
        Ok(Memory { keys, values, device: common.device.open(precision)? })
    }

    fn check_query(&self, query: &[f64]) -> Result<()> {
        let d = self.keys.rows()[0].len();
        if query.len() == d && query.iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        let problem = format!("has {} numbers, and keys have {d}", query.len());
        Err(Error::argument("--query", problem, format!("give {d} finite numbers, such as --query=1,-2")))
    }

    /// Looks up with the attention kernel.
    fn keys(&self, keys: &Keys, query: &[f64]) -> Result<Looked> {
        let (n, d) = (keys.rows().len(), query.len());
        let m = self.values.as_ref().map_or(1, |v| v[0].len());
        let mut g = Graph::new();
        let inputs = [g.input("q", &[1, 1, 1, d]), g.input("k", &[1, 1, n, d]), g.input("v", &[1, 1, n, m])];
        let op = SoftmaxAttention { scale: Some(keys.scale()), weights: true, ..Default::default() };
        let outputs = g.record(op, &inputs)?;
        let options = PlanOptions { keep: outputs.clone(), ..Default::default() };
        let plan = Plan::new(g, self.device.clone(), &options)?;
        plan.write(inputs[0], query)?;
        plan.write(inputs[1], &keys.rows().concat())?;
        plan.write(inputs[2], &self.values.as_ref().map_or_else(|| vec![0.0; n], |v| v.concat()))?;
        plan.forward()?;
        let value = self.values.is_some().then(|| plan.read(outputs[0])).transpose()?;
        Ok(Looked { scores: keys.scores(query), weights: plan.read(outputs[2])?, value })
    }

    /// Says how to average over some keys, or why that cannot be; with whether it can.
    fn average(&self, name: &str, chosen: &[usize], gap: f64, text: &mut String) -> Result<(Value, bool)> {
        let found = self.keys.average(chosen, gap)?;
        let _ = writeln!(text, "{name}:");
        Ok(match found {
            Found::Query(Query { query, margin, bound, others }) => {
                let looked = self.keys(&self.keys, &query)?;
                let _ = writeln!(text, "  query    {}", numbers(&query));
                looked.show(text);
                match margin.is_finite() {
                    true => {
                        let _ = writeln!(text, "  margin   {margin:.4} for each unit of the query's length");
                        promise(chosen.len(), bound, others, text);
                    }
                    false => text.push_str("  margin   no other key is left\n"),
                }
                let mut json = looked.to_json();
                json["chosen"] = json!(chosen);
                json["query"] = json!(query);
                json["margin"] = json!(margin.is_finite().then_some(margin));
                json["bound"] = json!(bound);
                (json, true)
            }
            Found::Impossible(mixture) => {
                let parts: Vec<String> = mixture.iter().map(|(key, w)| format!("{w:.4}·k{key}")).collect();
                let same = match chosen {
                    [one] => format!("k{one} is"),
                    _ => "a mixture of the chosen keys (with weights that sum to 1) is".into(),
                };
                let _ = writeln!(
                    text,
                    "  impossible: {same} {}; so no query scores what is chosen above all of these",
                    parts.join(" + ")
                );
                let mixture: Vec<Value> =
                    mixture.iter().map(|(key, weight)| json!({ "key": key, "weight": weight })).collect();
                (json!({ "chosen": chosen, "impossible": mixture }), false)
            }
        })
    }

    fn replace(
        &self,
        key: usize,
        query: &[f64],
        goal: Goal,
        unit: bool,
        gap: f64,
        text: &mut String,
    ) -> Result<(Value, bool)> {
        self.check_query(query)?;
        let found = self.keys.replace(key, query, goal, unit, gap)?;
        let _ = writeln!(text, "before:");
        self.keys(&self.keys, query)?.show(text);
        Ok(match found {
            Replacement::Key { key: new, gap } => {
                let looked = self.keys(&self.keys.with(key, new.clone()), query)?;
                let _ = writeln!(text, "after:");
                let length = new.iter().map(|x| x * x).sum::<f64>().sqrt();
                let _ = writeln!(text, "  k{key}       {}, of length {length:.4}", numbers(&new));
                looked.show(text);
                let mut json = looked.to_json();
                if goal == Goal::Return {
                    let (bound, others) = bounds(1, self.keys.rows().len(), gap);
                    let _ = writeln!(text, "  gap      {gap:.4} to the highest other score");
                    promise(1, bound, others, text);
                    json["bound"] = json!(bound);
                }
                json["gap"] = json!(gap);
                json["key"] = json!(key);
                json["replacement"] = json!(new);
                (json, true)
            }
            Replacement::Impossible(why) => {
                let _ = writeln!(text, "impossible: {why}");
                (json!({ "key": key, "impossible": why }), false)
            }
        })
    }
}

impl Looked {
    fn show(&self, text: &mut String) {
        let _ = writeln!(text, "  scores   {}", numbers(&self.scores));
        let shares: Vec<String> = self.weights.iter().map(|&w| share(w)).collect();
        let _ = writeln!(text, "  weights  {}", shares.join("  "));
        if let Some(value) = &self.value {
            let _ = writeln!(text, "  value    {}", numbers(value));
        }
    }

    fn to_json(&self) -> Value {
        let mut json = json!({ "scores": self.scores, "weights": self.weights });
        if let Some(value) = &self.value {
            json["value"] = json!(value);
        }
        json
    }
}

/// What the gap alone promises.
fn promise(chosen: usize, bound: f64, others: f64, text: &mut String) {
    let each = if chosen > 1 { "each chosen weight" } else { "its weight" };
    let (bound, others) = (share(bound), share(others));
    let _ = writeln!(text, "  bound    {each} is at least {bound}, all others together at most {others}");
}

fn numbers(x: &[f64]) -> String {
    // Rounding's −0 is 0.
    let one = |&x: &f64| format!("{:.4}", if x.abs() < 5e-5 { 0.0 } else { x });
    x.iter().map(one).collect::<Vec<_>>().join("  ")
}

/// A weight; one that four digits would show as 0 or 1 without being it, as how far it is from there.
fn share(weight: f64) -> String {
    match weight {
        w if w > 0.0 && w < 5e-5 => format!("{w:.1e}"),
        w if w < 1.0 && w > 1.0 - 5e-5 => format!("1 − {:.1e}", 1.0 - w),
        w => format!("{w:.4}"),
    }
}

type Rows = Vec<Vec<f64>>;

/// `k` and perhaps `v` of a file.
fn read(path: &Path) -> Result<(Rows, Option<Rows>)> {
    let remedy = "give k (n,d) and perhaps v (n,m), and nothing else";
    if path.extension().is_some_and(|e| e == "safetensors") {
        let mut all = tensors::read(path)?;
        let mut rows = |name: &str| {
            let Some(found) = all.remove(name) else { return Ok(None) };
            match found.given {
                Given::Real(shape, values) if shape.len() == 2 => {
                    Ok(Some(values.chunks(shape[1].max(1)).map(Vec::from).collect()))
                }
                other => {
                    let problem =
                        format!("tensor `{name}` of shape {:?} is no matrix of floating point", other.shape());
                    Err(Error::file(path, problem, remedy))
                }
            }
        };
        let (keys, values) = (rows("k")?, rows("v")?);
        if let Some(name) = all.keys().next() {
            return Err(Error::file(path, format!("tensor `{name}` is unknown"), remedy));
        }
        let keys = keys.ok_or_else(|| Error::file(path, "tensor `k` is missing", remedy))?;
        return Ok((keys, values));
    }
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Memory {
        k: Rows,
        v: Option<Rows>,
    }
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::file(path, format!("cannot be read: {e}"), "give a JSON or safetensors file that exists")
    })?;
    let Memory { k, v } = serde_json::from_str(&text)
        .map_err(|e| Error::file(path, format!("is no JSON of keys and values: {e}"), remedy))?;
    Ok((k, v))
}
