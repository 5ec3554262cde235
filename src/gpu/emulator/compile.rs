//! Kernels and the runtime as shared libraries: the host's C++ compiler, and the cache of what it made.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::sanitize::Sanitizer;
use crate::error::{Error, Result};
use crate::gpu::kernel::{HEADERS, Module};

/// The emulator's own files: name and text. All stand in `kernels/emulator/`.
const FILES: &[(&str, &str)] = &[
    ("emulator.h", include_str!("../../../kernels/emulator/emulator.h")),
    ("interface.h", include_str!("../../../kernels/emulator/interface.h")),
    ("cuda_math.h", include_str!("../../../kernels/emulator/cuda_math.h")),
    ("half.h", include_str!("../../../kernels/emulator/half.h")),
    ("mma.h", include_str!("../../../kernels/emulator/mma.h")),
    ("tensor_core.h", include_str!("../../../kernels/emulator/tensor_core.h")),
    ("fiber.h", include_str!("../../../kernels/emulator/fiber.h")),
    ("worker.h", include_str!("../../../kernels/emulator/worker.h")),
    ("device.h", include_str!("../../../kernels/emulator/device.h")),
];
const RUNTIME: &str = include_str!("../../../kernels/emulator/runtime.cpp");

const REMEDY: &str = "install g++ or clang++ (Debian: `apt-get install g++`), or name one in $CXX";

/// For all that is compiled.
const FLAGS: &[&str] =
    &["-std=c++17", "-O2", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"];

/// For kernels: what NVCC assumes (products and sums fuse, errno is not kept), and no warnings, which are
/// about CUDA's own habits (`#pragma unroll`).
const KERNEL_FLAGS: &[&str] =
    &["-w", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing"];

/// The host's C++ compiler with a cache directory.
#[derive(Debug, Clone)]
pub struct Compiler {
    program: PathBuf,
    version: String,
    processor: String,
    cache: PathBuf,
    sanitize: Option<Sanitizer>,
    /// Applied to the kernels, not to the runtime.
    pub mutation: Option<Mutation>,
}

/// A call to be left out of a kernel: how tests show that a barrier is needed and that its absence is noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    /// The file, such as `kernels/softmax_attention.cu`.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The call, such as `__syncthreads()`; its first occurrence in the line becomes nothing.
    pub call: String,
}

impl Compiler {
    /// Looks at `$CXX`, `c++`, `g++` and `clang++`, in this order.
    pub fn find(sanitize: Option<Sanitizer>) -> Result<Self> {
        if !cfg!(target_os = "linux") {
            return Err(Error::device("emulator", "it needs Linux", "use --device cpu"));
        }
        let chosen = std::env::var_os("CXX").filter(|v| !v.is_empty());
        let candidates = match &chosen {
            Some(program) => vec![program.clone()],
            None => ["c++", "g++", "clang++"].map(OsString::from).to_vec(),
        };
        for program in candidates {
            let program = PathBuf::from(program);
            let Ok(output) = command(&program).arg("--version").output() else { continue };
            if !output.status.success() {
                continue;
            }
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.lines().next().unwrap_or_default().trim().to_string();
            return Ok(Compiler {
                program,
                version,
                processor: processor(),
                cache: cache_directory()?,
                sanitize,
                mutation: None,
            });
        }
        let problem = match chosen {
            Some(program) => format!("$CXX is {}, which does not run", program.display()),
            None => "it needs a C++ compiler, and there is none of c++, g++ and clang++".to_string(),
        };
        Err(Error::device("emulator", problem, REMEDY))
    }

    /// Such as `g++ 12.2.0`.
    pub fn name(&self) -> String {
        let number = |word: &&str| word.contains('.') && word.chars().all(|c| c == '.' || c.is_ascii_digit());
        let family = if self.version.contains("clang") { "clang++" } else { "g++" };
        match self.version.split_whitespace().rfind(number) {
            Some(number) => format!("{family} {number}"),
            None => self.version.clone(),
        }
    }

    /// The sanitizer that kernels are compiled with.
    pub fn sanitizer(&self) -> Option<Sanitizer> {
        self.sanitize
    }

    /// The path of a library that comes with the compiler, if it has it.
    pub fn library(&self, name: &str) -> Option<PathBuf> {
        let output = command(&self.program).arg(format!("-print-file-name={name}")).output().ok()?;
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        // Where there is none, the name comes back as it is.
        (path.is_absolute() && path.exists()).then_some(path)
    }

    /// The runtime's library.
    pub fn runtime(&self) -> Result<PathBuf> {
        let text = expand(RUNTIME, "kernels/emulator/runtime.cpp", None);
        let flags = match self.sanitize {
            Some(Sanitizer::Address) => &["-DEMULATOR_ADDRESS"][..],
            Some(Sanitizer::Thread) => &["-DEMULATOR_THREAD"][..],
            None => &[],
        };
        let key = self.key(&text, flags, None);
        let soname = format!("-Wl,-soname,{}", file_name("attn-emulator", &key));
        self.build(
            "attn-emulator",
            "the emulator's runtime",
            &key,
            &text,
            &[flags, &[soname.as_str(), "-lpthread"]].concat(),
        )
    }

    /// A kernel's library, which finds the runtime by its soname once that is loaded.
    pub fn module(&self, module: &Module, runtime: &Path) -> Result<PathBuf> {
        // The emulator's own header comes before the defines, whose names are the kernels' affair.
        let (mut text, mut seen) = (String::new(), HashSet::new());
        expand_into(&mut text, "#define EMULATOR 1\n#include \"emulator.h\"\n", "emulator", None, &mut seen);
        for (name, value) in &module.defines {
            let _ = writeln!(text, "#define {name} {value}");
        }
        let file = format!("kernels/{}.cu", module.source);
        let _ = writeln!(text, "#line 1 \"{file}\"");
        expand_into(&mut text, module.text, &file, self.mutation.as_ref(), &mut seen);
        text.push_str("\n#line 1 \"entries\"\n");
        for entry in module.entries {
            let _ = writeln!(text, "EMULATOR_ENTRY({entry})");
        }
        let mut flags = KERNEL_FLAGS.to_vec();
        match self.sanitize {
            None => {}
            // Of what the UBSan can check, that which CUDA cannot do either. It traps, so it needs no library.
            Some(Sanitizer::Address) => flags.extend([
                "-g1",
                "-DEMULATOR_ADDRESS",
                "-fsanitize=address,alignment,signed-integer-overflow",
                "-fsanitize-undefined-trap-on-error",
            ]),
            Some(Sanitizer::Thread) => flags.extend(["-g1", "-DEMULATOR_THREAD", "-fsanitize=thread"]),
        }
        let key = self.key(&text, &flags, Some(runtime));
        let runtime = runtime.to_string_lossy().into_owned();
        // What the sanitizers need is there when the library is loaded: they are preloaded.
        flags.extend(["-nostdlib", &runtime, "-lm", "-lc"]);
        self.build(module.source, &module.to_string(), &key, &text, &flags)
    }

    fn key(&self, text: &str, flags: &[&str], runtime: Option<&Path>) -> String {
        let mut hash = Sha256::new();
        let runtime = runtime.and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let program = self.program.to_string_lossy();
        for part in [&program, &*self.version, &self.processor, &runtime, text]
            .into_iter()
            .chain(FLAGS.iter().copied())
            .chain(flags.iter().copied())
        {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.finalize().iter().take(16).fold(String::new(), |mut key, byte| {
            let _ = write!(key, "{byte:02x}");
            key
        })
    }

    /// Compiles unless the cache has it. Several processes may do so at once: each writes its own file, and the
    /// last rename wins.
    fn build(&self, name: &str, kernel: &str, key: &str, text: &str, flags: &[&str]) -> Result<PathBuf> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let path = self.cache.join(file_name(name, key));
        if path.exists() {
            return Ok(path);
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let part = self.cache.join(format!("{key}-{}-{serial}.part", std::process::id()));
        let mut compiler = command(&self.program);
        // The source comes first on the line: libraries after it.
        compiler.args(FLAGS).args(["-pipe", "-x", "c++", "-", "-x", "none", "-o"]).arg(&part).args(flags);
        let fail =
            |problem: String| Error::device("emulator", format!("{}: {problem}", self.program.display()), REMEDY);
        let mut child = compiler
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| fail(e.to_string()))?;
        // A compiler that stops early closes its input; its log says more than the broken pipe.
        let _ = child.stdin.take().map(|mut input| input.write_all(text.as_bytes()));
        let output = child.wait_with_output().map_err(|e| fail(e.to_string()))?;
        if !output.status.success() {
            let _ = std::fs::remove_file(&part);
            let log = String::from_utf8_lossy(&output.stderr);
            return Err(Error::kernel(
                kernel,
                format!("{} does not compile it ({}):\n{}", self.name(), output.status, log.trim_end()),
            ));
        }
        let cannot = |e: std::io::Error| {
            Error::file(&path, format!("cannot be written: {e}"), "name another cache directory in $ATTN_CACHE")
        };
        std::fs::rename(&part, &path).map_err(cannot)?;
        Ok(path)
    }
}

/// A preloaded sanitizer is for this process, not for the compiler.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_PRELOAD").env("LC_ALL", "C");
    command
}

fn file_name(name: &str, key: &str) -> String {
    format!("lib{name}-{key}.so")
}

/// What `-march=native` depends on.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let wanted = ["model name", "flags", "CPU part", "Features"];
    let mut lines: Vec<&str> = info.lines().filter(|line| wanted.iter().any(|w| line.starts_with(w))).collect();
    lines.sort_unstable();
    lines.dedup();
    format!("{} {}", std::env::consts::ARCH, lines.join("\n"))
}

fn cache_directory() -> Result<PathBuf> {
    let directory = match std::env::var_os("ATTN_CACHE").filter(|v| !v.is_empty()) {
        Some(directory) => PathBuf::from(directory),
        None => dirs::cache_dir().unwrap_or_else(std::env::temp_dir).join("attn-engine"),
    }
    .join("emulator");
    std::fs::create_dir_all(&directory).map_err(|e| {
        Error::file(&directory, format!("cannot be created: {e}"), "name another cache directory in $ATTN_CACHE")
    })?;
    Ok(directory)
}

/// Puts the known headers in place of their `#include` lines, so that nothing but one text goes to the compiler.
fn expand(text: &str, file: &str, mutation: Option<&Mutation>) -> String {
    let mut out = String::with_capacity(text.len() + 64 * 1024);
    expand_into(&mut out, text, file, mutation, &mut HashSet::new());
    out
}

fn expand_into(
    out: &mut String,
    text: &str,
    file: &str,
    mutation: Option<&Mutation>,
    seen: &mut HashSet<&'static str>,
) {
    let known = HEADERS.iter().map(|h| (h, "kernels")).chain(FILES.iter().map(|h| (h, "kernels/emulator")));
    for (number, line) in text.lines().enumerate() {
        let named = line.trim_start().strip_prefix("#include \"").and_then(|rest| rest.split('"').next());
        if let Some(((name, text), folder)) = named.and_then(|n| known.clone().find(|((name, _), _)| *name == n)) {
            if seen.insert(name) {
                let header = format!("{folder}/{name}");
                let _ = writeln!(out, "#line 1 \"{header}\"");
                expand_into(out, text, &header, mutation, seen);
                let _ = write!(out, "#line {} \"{file}\"", number + 2);
            }
        } else if let Some(m) = mutation.filter(|m| m.file == file && m.line == number + 1) {
            out.push_str(&line.replacen(&m.call, "((void)0)", 1));
        } else if line.trim() != "#pragma once" {
            out.push_str(line);
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_included_once_and_lines_keep_their_numbers() {
        let text = expand("#include \"interface.h\"\n#include \"interface.h\"\nint x;\n", "kernels/a.cu", None);
        assert_eq!(text.matches("struct Context {").count(), 1);
        assert!(text.ends_with("#line 2 \"kernels/a.cu\"\n\nint x;\n"), "{}", &text[text.len() - 60..]);
    }

    #[test]
    fn a_mutation_leaves_out_one_call() {
        let mutation = Mutation { file: "kernels/a.cu".into(), line: 2, call: "f()".into() };
        let text = expand("f(); f();\nf(); f();\n", "kernels/a.cu", Some(&mutation));
        assert_eq!(text, "f(); f();\n((void)0); f();\n");
        assert_eq!(expand("f();\nf();\n", "kernels/b.cu", Some(&mutation)), "f();\nf();\n");
    }
}
