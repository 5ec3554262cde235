//! `attn run OP`: one op on somebody's own tensors.

use super::device::{DeviceArgs, check_tf32, stored};
use super::{Status, print};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::io::Target;
use crate::io::tensors::{self, Dtype, Loaded, Written};
use crate::op::Kind;
use crate::ops::{Entry, OPS};
use crate::plan::{Plan, PlanOptions};
use crate::run_spec::{Given, RunGraph, RunSpec, TensorDoc};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// `attn run --list`, or an op with what it shall run on.
#[derive(Debug, Clone)]
pub enum Args {
    /// Print every op with its tensors and flags.
    List,
    /// Run one.
    Op(OpArgs),
}

/// Run one op on tensors from a file
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// The tensors that it takes, by name
    #[arg(long, value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// Where to write what it gives
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// What inputs and outputs are stored in, or on the CPU rounded to [default: as the first floating-point input]
    #[arg(long, value_name = "f64|f32|f16|bf16", hide_possible_values = true)]
    pub dtype: Option<Dtype>,
    /// On a GPU or the emulator: attention's products of f32 tensors in TF32
    #[arg(long)]
    pub tf32: bool,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// An op, and what it shall run on.
#[derive(Debug, Clone)]
pub struct OpArgs {
    /// Its name.
    pub op: &'static str,
    /// What all ops take.
    pub common: Common,
    /// Its own flags; a switch that was given holds an empty string.
    pub options: BTreeMap<String, String>,
}

fn runnable() -> impl Iterator<Item = (&'static Entry, &'static RunSpec)> {
    OPS.iter().filter_map(|e| Some((*e, e.run?)))
}

// By hand, since the subcommands come from the registry and not from an enum.
impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        let list =
            Arg::new("list").long("list").action(ArgAction::SetTrue).help("Print each op, its tensors and flags");
        let example = "Examples:\n  attn run --list\n  attn run softmax-attention --input qkv.safetensors --output out.safetensors --causal";
        command
            .about("Run one op on tensors from a file")
            .arg(list)
            .after_help(example)
            .subcommand_required(false)
            .args_conflicts_with_subcommands(true)
            .arg_required_else_help(true)
            .subcommand_value_name("OP")
            .subcommand_help_heading("Ops")
            .subcommands(runnable().map(|(entry, spec)| subcommand(entry, spec)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn subcommand(entry: &'static Entry, spec: &'static RunSpec) -> Command {
    let example = format!("\nExample:\n  attn run {} --input in.safetensors --output out.safetensors", entry.name);
    let command = <Common as clap::Args>::augment_args(Command::new(entry.name));
    let options = spec.options.iter().map(|option| {
        let arg = Arg::new(option.name).long(option.name).help(option.help);
        match option.value {
            None => arg.action(ArgAction::SetTrue),
            Some(value) if value.contains('|') => {
                arg.value_name(value).value_parser(value.split('|').collect::<Vec<_>>()).hide_possible_values(true)
            }
            Some(value) => arg.value_name(value).allow_negative_numbers(true),
        }
    });
    command.about(entry.summary).args(options).after_help(tensors_text(spec) + &example)
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Some((name, matches)) = matches.subcommand() else { return Ok(Args::List) };
        let (entry, spec) = runnable().find(|(e, _)| e.name == name).expect("clap knows the same ops");
        let mut options = BTreeMap::new();
        for option in spec.options {
            let value = match option.value {
                None => matches.get_flag(option.name).then(String::new),
                Some(_) => matches.get_one::<String>(option.name).cloned(),
            };
            options.extend(value.map(|v| (option.name.to_string(), v)));
        }
        Ok(Args::Op(OpArgs { op: entry.name, common: Common::from_arg_matches(matches)?, options }))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What an op takes and gives, a line each.
fn tensors_text(spec: &RunSpec) -> String {
    let mut text = String::new();
    let mut list = |title: &str, docs: &[TensorDoc]| {
        let width = docs.iter().map(|d| d.name.len()).max().unwrap_or(0);
        for (i, doc) in docs.iter().enumerate() {
            let title = if i == 0 { title } else { "" };
            let optional = if doc.optional { "  optional" } else { "" };
            writeln!(text, "{title:<8}{:<width$}  {}{optional}", doc.name, doc.shape).expect("a string takes all");
        }
    };
    list("takes", spec.inputs);
    list("gives", spec.outputs);
    if let Some(first) = spec.outputs.first() {
        let (name, shape) = (first.name, first.shape);
        text += &format!("with    d{name}  {shape}: also d<input> for each floating-point input\n");
    }
    text
}

fn list() -> String {
    let mut text = String::new();
    for (entry, spec) in runnable() {
        text += &format!("{}: {}\n", entry.name, entry.summary);
        for line in tensors_text(spec).lines() {
            text += &format!("  {line}\n");
        }
        for (i, option) in spec.options.iter().enumerate() {
            let flag = format!("--{} {}", option.name, option.value.unwrap_or(""));
            text += &format!("  {:<8}{:<24}  {}\n", if i == 0 { "flags" } else { "" }, flag.trim_end(), option.help);
        }
        text.push('\n');
    }
    text
}

/// Runs the command.
///
/// # Errors
/// Naming the file, tensor or flag at fault.
pub fn main(args: Args) -> Result<Status> {
    match args {
        Args::List => print(list())?,
        Args::Op(args) => {
            let (_, spec) = runnable().find(|(e, _)| e.name == args.op).expect("an op that clap knows");
            run(spec, args)?;
        }
    }
    Ok(Status::Done)
}

/// The output whose gradient `name` is, if an op takes that: `dout` for the first; for others, where the op lists it.
fn gradient_of(spec: &RunSpec, name: &str) -> Option<usize> {
    let output = spec.outputs.iter().position(|o| name.strip_prefix('d') == Some(o.name))?;
    (output == 0 || spec.inputs.iter().any(|i| i.name == name)).then_some(output)
}

fn run(spec: &RunSpec, args: OpArgs) -> Result<()> {
    let Common { input, output, dtype, tf32, device } = args.common;
    let mut loaded = tensors::read(&input)?;
    let target = Target::new(&output)?;

    let known = |name: &str| gradient_of(spec, name).is_some() || spec.inputs.iter().any(|i| i.names(name));
    if let Some(name) = loaded.keys().find(|name| !known(name)) {
        let mut names: Vec<&str> = spec.inputs.iter().map(|i| i.name).collect();
        let gradient = spec.outputs.first().map(|o| format!("d{}", o.name)).unwrap_or_default();
        names.push(&gradient);
        let remedy = format!("leave it out; `{}` takes {}", args.op, names.join(", "));
        return Err(Error::argument(format!("tensor `{name}`"), "is unknown", remedy));
    }
    let is_real = |name: &str| loaded.get(name).and_then(|t: &Loaded| t.dtype);
    let dtype = dtype.or_else(|| spec.inputs.iter().find_map(|i| is_real(i.name))).unwrap_or(Dtype::F32);
    let device = device.open(stored(dtype, tf32)?)?;

    // Gradients of outputs are no inputs of the graph.
    let names: Vec<String> = loaded.keys().filter(|n| gradient_of(spec, n).is_some()).cloned().collect();
    let gradients: Vec<(String, Loaded)> = names.into_iter().filter_map(|n| loaded.remove_entry(&n)).collect();
    let given = loaded.into_iter().map(|(name, t)| (name, t.given)).collect();
    let mut record = RunGraph { graph: Graph::new(), given, options: args.options, bound: Vec::new() };
    let outputs = (spec.record)(&mut record)?;
    let RunGraph { graph, given, bound, .. } = record;
    if tf32 {
        check_tf32(&graph, &*device)?;
    }
    graph.remarks(&*device)?.iter().for_each(|remark| eprintln!("note: {remark}"));
    if let Some(name) = given.keys().find(|name| !bound.iter().any(|(b, _)| b == *name)) {
        let remedy = "leave it out, or give what it belongs to";
        return Err(Error::argument(format!("tensor `{name}`"), "is not used with these tensors and flags", remedy));
    }
    let mut roots = Vec::new();
    for (name, tensor) in &gradients {
        let root = gradient_of(spec, name).and_then(|i| outputs.get(i).copied());
        let root = root.ok_or_else(|| Error::argument(format!("tensor `{name}`"), "has no output", "leave it out"))?;
        let (shape, expected) = (tensor.given.shape(), graph.shape(root));
        if shape != expected || tensor.dtype.is_none() {
            let kind = if tensor.dtype.is_none() { "integers" } else { "floating point" };
            let problem = format!("is {kind} of shape {shape:?}");
            let remedy = format!("give floating point of shape {expected:?}");
            return Err(Error::argument(format!("tensor `{name}`"), problem, remedy));
        }
        roots.push(root);
    }

    let options = PlanOptions { roots: roots.clone(), keep: outputs.clone(), ..Default::default() };
    let plan = Plan::new(graph, device, &options)?;
    for (name, t) in &bound {
        feed(&plan, name, *t, &given[name], dtype)?;
    }
    plan.forward()?;
    let written =
        |name: String, t: Tensor, dtype, values| Written { name, dtype, shape: plan.graph().shape(t).to_vec(), values };
    let mut results = Vec::new();
    for (doc, &t) in spec.outputs.iter().zip(&outputs) {
        // A logarithm of a sum keeps the precision that it was computed in.
        let dtype = if doc.name == "lse" && dtype != Dtype::F64 { Dtype::F32 } else { dtype };
        results.push(written(doc.name.into(), t, dtype, plan.read(t)?));
    }
    if !roots.is_empty() {
        for ((_, tensor), &root) in gradients.iter().zip(&roots) {
            if let Given::Real(_, values) = &tensor.given {
                plan.seed(root, &rounded(&plan, root, values, dtype))?;
            }
        }
        plan.backward()?;
        for (name, t) in bound.iter().filter(|(_, t)| plan.graph().needs_gradient(*t)) {
            results.push(written(format!("d{name}"), *t, dtype, plan.read_gradient(*t)?));
        }
    }
    tensors::write(&target, &results)
}

/// What a tensor's values are in this dtype; one that is kept in the precision of the computation stays as it is.
fn rounded(plan: &Plan, t: Tensor, values: &[f64], dtype: Dtype) -> Vec<f64> {
    match plan.graph().spec(t).kind {
        Kind::Full => values.to_vec(),
        _ => values.iter().map(|&x| dtype.round(x)).collect(),
    }
}

fn feed(plan: &Plan, name: &str, t: Tensor, given: &Given, dtype: Dtype) -> Result<()> {
    match given {
        Given::Real(_, values) => plan.write(t, &rounded(plan, t, values, dtype)),
        Given::Int(_, values) => {
            let narrow = |&x: &i64| i32::try_from(x);
            let values: Result<Vec<i32>, _> = values.iter().map(narrow).collect();
            let wide =
                |_| Error::argument(format!("tensor `{name}`"), "holds integers beyond 32 bits", "give smaller ones");
            plan.write_indices(t, &values.map_err(wide)?)
        }
    }
}
