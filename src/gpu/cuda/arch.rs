//! Architectures that kernels are compiled for.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A compilation target: `sm_80`, or `sm_90a` with the features that only that very chip has (wgmma, setmaxnreg).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// Compute capability times ten.
    pub sm: u32,
    /// The `a` of `sm_90a`: code runs on this capability and on no other, not even a later one.
    pub specific: bool,
}

const fn plain(sm: u32) -> Arch {
    Arch { sm, specific: false }
}

const fn specific(sm: u32) -> Arch {
    Arch { sm, specific: true }
}

impl Arch {
    /// What the kernel gate compiles for: Turing to Blackwell.
    pub const ALL: [Arch; 7] = [plain(75), plain(80), plain(86), plain(89), specific(90), specific(100), plain(120)];

    /// The target for a device of this compute capability: (9, 0) is `sm_90a`. Capabilities that are not in
    /// [`Arch::ALL`] (8.7, 10.3, 12.1 …) are targets of their own, which NVRTC compiles where it knows them.
    pub fn from_capability(major: u32, minor: u32) -> Arch {
        let sm = major * 10 + minor;
        Arch { sm, specific: matches!(sm, 90 | 100) }
    }

    /// Bytes of shared memory, static and dynamic together, that one block may ask for
    /// (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
    pub fn shared_per_block(self) -> u32 {
        let kib = match self.sm {
            0..=79 => 64,
            80 | 87 => 163,
            90..=119 => 227,
            _ => 99,
        };
        kib * 1024
    }

    /// Where prebuilt code for a device of this architecture may be found: the architecture itself, then those of
    /// [`Arch::ALL`] whose code it runs (same major version, lower minor version, nothing specific).
    pub fn candidates(self) -> Vec<Arch> {
        let mut list = vec![self];
        let lower = |other: &&Arch| !other.specific && other.sm / 10 == self.sm / 10 && other.sm < self.sm;
        list.extend(Arch::ALL.iter().rev().filter(lower));
        list
    }

    /// `sm_90a`, or `compute_90` for PTX.
    pub(super) fn option(self, ptx: bool) -> String {
        let kind = if ptx { "compute" } else { "sm" };
        format!("--gpu-architecture={kind}_{}{}", self.sm, if self.specific { "a" } else { "" })
    }

    /// A comma-separated list, or `all`.
    pub fn parse_list(text: &str) -> Result<Vec<Arch>> {
        if text.trim() == "all" {
            return Ok(Arch::ALL.to_vec());
        }
        let mut list = Vec::new();
        for part in text.split(',') {
            let arch = part.parse()?;
            if !list.contains(&arch) {
                list.push(arch);
            }
        }
        Ok(list)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // `pad`, so that tables can ask for a width.
        f.pad(&format!("sm_{}{}", self.sm, if self.specific { "a" } else { "" }))
    }
}

impl FromStr for Arch {
    type Err = Error;

    /// `sm_90a` or `90a`. A number without its `a` means what a device of that capability gets: `90` is `sm_90a`.
    fn from_str(text: &str) -> Result<Arch> {
        let name = text.trim();
        let number = name.strip_prefix("sm_").unwrap_or(name);
        let (number, letter) = match number.strip_suffix('a') {
            Some(number) => (number, true),
            None => (number, false),
        };
        match number.parse::<u32>() {
            Ok(sm) if (50..1000).contains(&sm) => {
                Ok(Arch { sm, specific: letter || Arch::from_capability(sm / 10, sm % 10).specific })
            }
            _ => {
                let known: Vec<String> = Arch::ALL.iter().map(Arch::to_string).collect();
                let remedy = format!("give a comma-separated list of {}, or `all`", known.join(", "));
                Err(Error::argument(format!("architecture `{name}`"), "not a known name", remedy))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for arch in Arch::ALL {
            assert_eq!(arch.to_string().parse::<Arch>().unwrap(), arch);
        }
        assert_eq!("90".parse::<Arch>().unwrap(), specific(90));
        assert_eq!(Arch::parse_list("75, sm_80,75").unwrap(), [plain(75), plain(80)]);
        assert_eq!(Arch::parse_list("all").unwrap(), Arch::ALL);
        assert!(Arch::parse_list("hopper").unwrap_err().to_string().contains("sm_90a"));
        assert!("".parse::<Arch>().is_err());
    }

    #[test]
    fn devices_find_code_that_they_can_run() {
        assert_eq!(Arch::from_capability(9, 0), specific(90));
        assert_eq!(Arch::from_capability(8, 7).candidates(), [plain(87), plain(86), plain(80)]);
        assert_eq!(Arch::from_capability(12, 1).candidates(), [plain(121), plain(120)]);
        // sm_100a code runs on 10.0 and nowhere else.
        assert_eq!(Arch::from_capability(10, 3).candidates(), [plain(103)]);
        assert_eq!(specific(90).candidates(), [specific(90)]);
    }

    #[test]
    fn shared_memory_limits() {
        let kib: Vec<u32> = Arch::ALL.iter().map(|a| a.shared_per_block() / 1024).collect();
        assert_eq!(kib, [64, 163, 99, 99, 227, 227, 99]);
    }
}
