//! What a sweep's file describes: runs, each as flags of `attn train lm`, and what they are to be evaluated on.

use crate::cli::eval;
use crate::cli::train::LmArgs;
use crate::error::{Error, Result};
use crate::train::checkpoint::BEST;
use clap::{CommandFactory, Parser};
use std::collections::BTreeSet;
use std::path::Path;
use toml::{Table, Value};

/// Flags that the sweep itself decides.
const OWN: [&str; 6] = ["out", "resume", "overwrite", "sweep", "help", "version"];

/// The flags of `attn train lm` by themselves.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Flags {
    #[command(flatten)]
    lm: LmArgs,
}

/// The flags of `attn eval lm`, after the word `lm`.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct EvalFlags {
    #[command(flatten)]
    eval: eval::Args,
}

/// A run to be made.
pub struct Run {
    /// Its folder in --out.
    pub name: String,
    /// What the file says, by the flags' long names.
    pub flags: Vec<(String, Value)>,
    /// The same, parsed.
    pub(in crate::cli) args: LmArgs,
}

impl Run {
    /// Where it is made.
    pub fn folder(&self) -> &Path {
        self.args.out.as_deref().expect("every run has a folder")
    }
}

/// Errors that name the file.
struct Source<'a>(&'a Path);

impl Source<'_> {
    fn wrong(&self, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::file(self.0, problem, remedy)
    }

    fn table<'v>(&self, value: &'v Value, what: &str) -> Result<&'v Table> {
        value.as_table().ok_or_else(|| self.wrong(format!("`{what}` is no table"), "see `attn train lm --help`"))
    }

    /// The flags of a table, each known to `attn train lm`.
    fn flags(&self, table: &Table, what: &str, beside: &[&str]) -> Result<Vec<(String, Value)>> {
        let command = Flags::command();
        let known: BTreeSet<&str> = command.get_arguments().filter_map(|a| a.get_long()).collect();
        let mut flags = Vec::new();
        for (name, value) in table.iter().filter(|(name, _)| !beside.contains(&name.as_str())) {
            if OWN.contains(&name.as_str()) {
                let problem = format!("{what} has `{name}`, which the sweep decides");
                return Err(self.wrong(problem, "leave it out: runs go into folders of --out"));
            }
            if !known.contains(name.as_str()) {
                let problem = format!("{what} has `{name}`, which is no flag of `attn train lm`");
                return Err(self.wrong(problem, "give flags by their long names without dashes, as in `lr = 1e-3`"));
            }
            flags.push((name.clone(), value.clone()));
        }
        Ok(flags)
    }

    /// A value as it would stand on the command line; nothing for a switch that is off.
    ///
    /// # Errors
    /// If it is a list or a table.
    fn argument(&self, (name, value): &(String, Value)) -> Result<Option<String>> {
        Ok(match value {
            Value::Boolean(on) if is_switch(name) => on.then(|| format!("--{name}")),
            Value::Array(_) | Value::Table(_) => {
                let problem = format!("`{name}` must be one value here");
                return Err(self.wrong(problem, "give several under [grid], as in `lr = [1e-3, 3e-4]`"));
            }
            one => Some(format!("--{name}={}", shown(one))),
        })
    }
}

/// Whether a flag takes no value.
fn is_switch(name: &str) -> bool {
    let command = Flags::command();
    command.get_arguments().any(|a| a.get_long() == Some(name) && !a.get_action().takes_values())
}

/// A value as the command line takes it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(x) => x.to_string(),
        other => other.to_string(),
    }
}

/// What a file describes.
pub struct Sweep {
    /// At least one.
    pub runs: Vec<Run>,
    /// What `attn eval lm` is to do with all of them.
    pub eval: Option<eval::Args>,
}

/// Reads a file. All its flags are parsed, and found in range.
///
/// # Errors
/// If it cannot be read or is no description of a sweep, naming the key or the run at fault.
pub fn read(file: &Path, outer: &LmArgs) -> Result<Sweep> {
    let source = Source(file);
    let text = std::fs::read_to_string(file)
        .map_err(|e| source.wrong(format!("cannot be read: {e}"), "give a sweep's description in TOML"))?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        source.wrong(format!("is no TOML: line {line}: {}", e.message()), "correct the line")
    })?;
    let mut base = Vec::new();
    let mut grid: Vec<(String, Vec<Value>)> = Vec::new();
    let mut named: Vec<(String, Vec<(String, Value)>)> = Vec::new();
    let mut evaluated = None;
    for (key, value) in &table {
        match key.as_str() {
            "base" => base = source.flags(source.table(value, "base")?, "[base]", &[])?,
            "grid" => {
                for (name, values) in source.flags(source.table(value, "grid")?, "[grid]", &[])? {
                    let Some(values) = values.as_array().filter(|v| !v.is_empty()) else {
                        return Err(
                            source.wrong(format!("[grid] `{name}` is no list of values"), "as in `lr = [1e-3, 3e-4]`")
                        );
                    };
                    grid.push((name, values.clone()));
                }
            }
            "run" => {
                let Some(list) = value.as_array() else {
                    return Err(source.wrong("`run` is no list of tables", "write [[run]] above each"));
                };
                for (i, run) in list.iter().enumerate() {
                    let run = source.table(run, "run")?;
                    let Some(name) = run.get("name").and_then(Value::as_str).filter(|n| is_plain(n)) else {
                        let remedy = "give each [[run]] a `name` of letters, digits, `.`, `_` and `-`";
                        return Err(
                            source.wrong(format!("[[run]] number {} has no name for its folder", i + 1), remedy)
                        );
                    };
                    named.push((name.into(), source.flags(run, &format!("[[run]] `{name}`"), &["name"])?));
                }
            }
            "eval" => evaluated = Some(source.table(value, "eval")?),
            other => {
                let problem = format!("has `{other}`, which is no part of a sweep");
                return Err(source.wrong(problem, "give [base], [grid], [[run]] and [eval]"));
            }
        }
    }
    if grid.is_empty() && named.is_empty() {
        return Err(source.wrong("describes no run", "give a [grid], or a [[run]]"));
    }
    if named.is_empty() {
        named.push((String::new(), Vec::new()));
    }
    // Every combination, the last list changing fastest.
    let mut points: Vec<Vec<(String, Value)>> = vec![Vec::new()];
    for (name, values) in &grid {
        let with = |point: &Vec<(String, Value)>, value: &Value| {
            point.iter().cloned().chain([(name.clone(), value.clone())]).collect()
        };
        points = points.iter().flat_map(|point| values.iter().map(move |value| with(point, value))).collect();
    }
    let mut runs: Vec<Run> = Vec::new();
    for (name, own) in &named {
        if let Some((flag, _)) = own.iter().find(|(flag, _)| grid.iter().any(|(g, _)| g == flag)) {
            let problem = format!("[[run]] `{name}` sets `{flag}`, and so does [grid]");
            return Err(source.wrong(problem, "leave it out of one of them"));
        }
        for point in &points {
            let varied = point.iter().map(|(flag, value)| format!("{flag}={}", file_name(&shown(value))));
            let parts: Vec<String> = Some(name.clone()).filter(|n| !n.is_empty()).into_iter().chain(varied).collect();
            let name = parts.join(",");
            if runs.iter().any(|run| run.name == name) {
                return Err(
                    source.wrong(format!("describes the run `{name}` twice"), "give every run its own name and values")
                );
            }
            let mut flags = base.clone();
            for (flag, value) in own.iter().chain(point) {
                flags.retain(|(name, _)| name != flag);
                flags.push((flag.clone(), value.clone()));
            }
            let args = parsed(&source, &name, &flags, outer)?;
            runs.push(Run { name, flags, args });
        }
    }
    let eval = evaluated.map(|table| evaluation(&source, table, &runs, outer)).transpose()?;
    Ok(Sweep { runs, eval })
}

/// `[eval]` as the command line of `attn eval lm` for all runs: `batch-sizes` is its --batch-size, `[eval.texts]` and
/// `[eval.sentences]` are its --text and --sentence by name, `checkpoint = "best"` takes the best checkpoints; other keys
/// are its flags.
fn evaluation(source: &Source, table: &Table, runs: &[Run], outer: &LmArgs) -> Result<eval::Args> {
    let mut line = vec!["lm".to_string()];
    let mut folder = None;
    for (name, value) in table {
        let wrong = |problem: &str, remedy: &str| Err(source.wrong(format!("[eval] `{name}` {problem}"), remedy));
        match (name.as_str(), value) {
            ("texts" | "sentences", Value::Table(named)) => {
                for (title, value) in named {
                    let Some(text) = value.as_str() else {
                        return wrong(&format!("`{title}` is no text"), "give it in quotation marks");
                    };
                    line.push(format!("--{}={title}={text}", &name[..name.len() - 1]));
                }
            }
            ("texts" | "sentences", _) => {
                return wrong("is no table", "write [eval.texts], and below it `name = \"file\"`");
            }
            ("batch-sizes", Value::Array(sizes)) => {
                line.push(format!("--batch-size={}", sizes.iter().map(shown).collect::<Vec<_>>().join(",")));
            }
            ("batch-sizes", _) => return wrong("is no list", "as in `batch-sizes = [1, 32]`"),
            ("checkpoint", Value::String(which)) if which == "last" => folder = None,
            ("checkpoint", Value::String(which)) if which == BEST => folder = Some(BEST),
            ("checkpoint", _) => return wrong("is none of a run's checkpoints", "give \"last\" or \"best\""),
            ("text" | "sentence" | "batch-size" | "json" | "csv" | "device" | "threads" | "help", _) => {
                return wrong("has no place here", "give batch-sizes, [eval.texts], [eval.sentences] and other flags");
            }
            (_, Value::Boolean(on)) => line.extend(on.then(|| format!("--{name}"))),
            _ => line.extend(source.argument(&(name.clone(), value.clone()))?),
        }
    }
    for run in runs {
        let directory = folder.map_or(run.folder().into(), |f| run.folder().join(f));
        line.push(format!("--checkpoint={}", directory.display()));
    }
    let out = outer.out.as_ref().expect("clap asks for it");
    for kind in ["json", "csv"] {
        line.push(format!("--{kind}={}", out.join("eval").with_extension(kind).display()));
    }
    line.push(format!("--device={}", outer.device.device));
    line.extend(outer.device.threads.map(|n| format!("--threads={n}")));
    match EvalFlags::try_parse_from(line) {
        Ok(flags) => Ok(flags.eval),
        Err(e) => {
            let message = e.to_string();
            let first = message.lines().next().unwrap_or_default();
            let problem = format!("[eval]: {}", first.strip_prefix("error: ").unwrap_or(first));
            Err(source.wrong(problem, "see `attn eval lm --help`"))
        }
    }
}

fn is_plain(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(fits)
}

/// A value as part of a folder's name.
fn file_name(value: &str) -> String {
    value.chars().map(|c| if c.is_alphanumeric() || "._-+".contains(c) { c } else { '_' }).collect()
}

/// The flags of a run, parsed and found in range.
fn parsed(source: &Source, name: &str, flags: &[(String, Value)], outer: &LmArgs) -> Result<LmArgs> {
    let out = outer.out.as_ref().expect("clap asks for it").join(name);
    let mut line = vec![format!("--out={}", out.display())];
    for flag in flags {
        line.extend(source.argument(flag)?);
    }
    let mut args = match Flags::try_parse_from(line) {
        Ok(flags) => flags.lm,
        Err(e) => {
            let message = e.to_string();
            let first = message.lines().next().unwrap_or_default();
            let problem = format!("run `{name}`: {}", first.strip_prefix("error: ").unwrap_or(first));
            return Err(source.wrong(problem, "see `attn train lm --help`"));
        }
    };
    args.settings.start(None).map_err(|e| source.wrong(format!("run `{name}`: {e}"), "correct it in the file"))?;
    let given = |flag: &str| flags.iter().any(|(name, _)| name == flag);
    if !given("device") {
        args.device.device = outer.device.device;
    }
    if !given("threads") {
        args.device.threads = outer.device.threads;
    }
    args.eager |= outer.eager;
    Ok(args)
}
