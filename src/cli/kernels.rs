//! `attn kernels`: compile every kernel on a machine without a GPU, and see what each takes.

use std::path::PathBuf;

use super::validate::matches;
use crate::Error;
use crate::gpu::cuda::Arch;
use crate::gpu::cuda::cache::{self, Cache};
use crate::gpu::cuda::gate::{self, GateItem, Report};
use crate::gpu::cuda::install::{install_nvdisasm, install_nvrtc};
use crate::gpu::cuda::nvdisasm::Nvdisasm;
use crate::gpu::modules::{launched, launched_by_cases};
use crate::ops::{OPS, softmax_attention};
use crate::precision::Precision;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

/// `attn kernels`
#[derive(Debug, Args)]
pub struct KernelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compile every kernel into a folder for a GPU machine that has neither Python nor a toolkit
    #[command(after_help = "Example: attn kernels build --arch 80,90a --out kernels-built --install\n\
                            There: ATTN_KERNELS=kernels-built attn validate --device cuda\n\
                            Exits with 1 where a kernel does not compile, spills, or takes too much shared memory.")]
    Build {
        /// Architectures, such as sm_80,sm_90a; `all` for every one that the kernels are made for
        #[arg(long, value_name = "LIST", default_value = "all", value_parser = parse_archs)]
        arch: Archs,
        /// The folder to write
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Compile every kernel and print registers, spills, shared memory and occupancy; writes no kernels
    #[command(after_help = "Examples:\n  attn kernels report --arch 90a --json report.json\n  \
                            attn kernels report --sass --install --kernels softmax_attention\n\
                            Exits with 1 where a kernel does not compile, spills, or takes too much shared memory.")]
    Report {
        /// Architectures, such as sm_80,sm_90a; `all` for every one that the kernels are made for
        #[arg(long, value_name = "LIST", default_value = "all", value_parser = parse_archs)]
        arch: Archs,
        /// Print what each kernel's main loop consists of and which unit bounds it, read from the machine code (takes
        /// nvdisasm, which --install fetches, and longer)
        #[arg(long)]
        sass: bool,
        /// Only kernels whose file's name matches; * stands for anything
        #[arg(long, value_name = "GLOB", default_value = "*")]
        kernels: String,
        /// Only attention without features in bf16, at head sizes 16, 64, 128 and 256: what docs/machine-code.md tells of
        #[arg(long)]
        representative: bool,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, Args)]
struct How {
    /// Fetch the CUDA compiler library (NVRTC, 90 MB) with Python's pip first, unless it was fetched before
    #[arg(long)]
    install: bool,
    /// Compilations at a time (default: one a core)
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    jobs: usize,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A list in one value: clap would take a bare `Vec` for a flag that may be repeated.
#[derive(Debug, Clone)]
struct Archs(Vec<Arch>);

fn parse_archs(text: &str) -> Result<Archs, Error> {
    Arch::parse_list(text).map(Archs)
}

/// Runs the command on what the validation cases launch. `false`: something is wrong with a kernel, and the table on
/// stdout says what.
pub fn run(args: KernelsArgs) -> anyhow::Result<bool> {
    let (archs, out, sass, kernels, representative, how) = match args.command {
        Command::Build { arch, out, how } => (arch.0, Some(out), false, "*".into(), false, how),
        Command::Report { arch, sass, kernels, representative, how } => {
            (arch.0, None, sass, kernels, representative, how)
        }
    };
    let items = if representative {
        launched_by_cases(&[Precision::Bf16], &softmax_attention::representative_cases(), &archs)?
    } else {
        launched(OPS, &Arch::ALL)?
    };
    let items: Vec<GateItem> = items.iter().filter(|i| matches(&kernels, i.module.source)).cloned().collect();
    if items.is_empty() {
        Err(Error::argument(format!("--kernels {kernels}"), "matches no kernel", "give a name from kernels/, or *"))?;
    }
    if how.install {
        eprintln!("NVRTC: fetching it, unless it is there");
        eprintln!("NVRTC: {}", install_nvrtc()?.display());
        if sass {
            eprintln!("nvdisasm: {}", install_nvdisasm()?.display());
        }
    }
    let disassembler = if sass { Some(Nvdisasm::find()?) } else { None };
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("compiling {bar:30} {pos}/{len} {eta} left")?);
    let progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let cache = Cache::standard()?;
    let report: Report =
        gate::build(&items, &archs, out.as_deref(), how.jobs, &cache, disassembler.as_ref(), &progress)?;
    bar.finish_and_clear();
    super::print(report.main_loops())?;
    super::print(report.table())?;
    if let Some(folder) = out {
        let folder = folder.display();
        super::print_line(format_args!("written to {folder}; use it with ATTN_KERNELS={folder}"))?;
    }
    if let Some(path) = how.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        cache::write_whole(&path, text.as_bytes())
            .map_err(|e| Error::file(&path, e.to_string(), "give --json a file that can be written"))?;
    }
    Ok(report.passed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: KernelsArgs,
    }

    fn parse(line: &str) -> Result<KernelsArgs, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.args)
    }

    #[test]
    fn lines_are_understood_or_refused_with_a_remedy() {
        let args = parse("kernels build --arch 80,90 --out built --install --jobs 3 --json r.json").unwrap();
        let Command::Build { arch, out, how } = args.command else { panic!("{args:?}") };
        assert_eq!(arch.0, Arch::parse_list("sm_80,sm_90a").unwrap());
        assert!(out.as_os_str() == "built" && how.install && how.jobs == 3 && how.json.is_some());
        let Command::Report { arch, sass, .. } = parse("kernels report").unwrap().command else { panic!() };
        assert!(arch.0 == Arch::ALL && !sass);
        assert!(parse("kernels build").unwrap_err().to_string().contains("--out"));
        assert!(parse("kernels report --arch volta").unwrap_err().to_string().contains("sm_75"));
    }
}
