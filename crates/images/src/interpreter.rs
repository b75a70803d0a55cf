//! Images of Cove's own interpreters: Python, Node and a shell, for sessions that run code.
//!
//! An image has two layers: a system made of Debian and PyPI packages, which takes minutes and is kept in a cache, and the
//! small server in `guest/` that runs the code and answers on port [`INTERPRETER_PORT`]. What a system is made of is its
//! recipe; the same recipe is made once. Nothing of a package's maintainer scripts runs on this machine or in the image.
//!
//! **Invariant:** a folder in the cache is whole: it is made beside and renamed.

use std::io;

use camino::Utf8PathBuf;

use crate::digest::Hasher;

mod build;
mod layout;

pub use build::{BuildOptions, BuiltInterpreter, build_interpreter};

/// Port of the server in an interpreter's image. High, so that an ordinary user may listen; not 80, 8000 or 8080, which code
/// that starts a server of its own would take.
pub const INTERPRETER_PORT: u16 = 6000;

/// Debian's release that the systems are made of, and its Python.
const SUITE: &str = "bookworm";
const PYTHON: &str = "3.11";

/// One of Cove's interpreters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interpreter {
    /// IPython with numpy, pandas and matplotlib; also a shell.
    Python,
    /// Node; also a shell.
    Node,
    /// Bash.
    Shell,
}

impl Interpreter {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Python, Self::Node, Self::Shell];

    /// The word for commands and names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Shell => "shell",
        }
    }

    /// The interpreter of this word.
    #[must_use]
    pub fn from_word(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Name of its image on every server.
    #[must_use]
    pub fn image(self) -> String {
        format!("cove.local/interpreter-{}:latest", self.as_str())
    }

    /// Debian packages of its system; what they depend on comes with them.
    fn packages(self) -> Vec<&'static str> {
        // the server is written in Python in all of them
        let mut all = vec![
            "base-files",
            "bash",
            "ca-certificates",
            "coreutils",
            "curl",
            "dash",
            "diffutils",
            "file",
            "findutils",
            "gawk",
            "grep",
            "gzip",
            "hostname",
            "jq",
            "less",
            "libc-bin",
            "ncurses-base",
            "netbase",
            "procps",
            "python3",
            "sed",
            "tar",
            "unzip",
            "util-linux",
            "xz-utils",
            "zip",
        ];
        match self {
            Self::Python => all.push("libstdc++6"),
            Self::Node => all.push("nodejs"),
            Self::Shell => {}
        }
        all
    }

    /// PyPI packages of its system, as pip reads them.
    fn requirements(self) -> &'static str {
        if self == Self::Python { include_str!("interpreter/guest/requirements.txt") } else { "" }
    }

    /// Names the system: the same recipe gives the same system.
    fn recipe(self) -> String {
        let mut hasher = Hasher::default();
        // counts up when the way of building changes
        let parts = ["2", SUITE, PYTHON, std::env::consts::ARCH, &self.packages().join(" "), self.requirements()];
        for part in parts {
            hasher.update(part.as_bytes());
            hasher.update(b"\0");
        }
        hasher.finish().hex()[..16].to_owned()
    }
}

/// Files of the server in the image.
const GUEST: [(&str, &[u8]); 7] = [
    ("files.py", include_bytes!("interpreter/guest/files.py")),
    ("kernel.py", include_bytes!("interpreter/guest/kernel.py")),
    ("kernels.py", include_bytes!("interpreter/guest/kernels.py")),
    ("node.js", include_bytes!("interpreter/guest/node.js")),
    ("output.py", include_bytes!("interpreter/guest/output.py")),
    ("serve.py", include_bytes!("interpreter/guest/serve.py")),
    ("variables.py", include_bytes!("interpreter/guest/variables.py")),
];

/// Why an interpreter's image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum InterpreterError {
    /// Building makes device files and changes root.
    #[error("building an interpreter's image needs root; run it with sudo")]
    NotRoot,
    /// A program is missing.
    #[error("`{program}` is needed to build an interpreter's image and was not found; install it: {install}")]
    Missing {
        /// What was looked for.
        program: &'static str,
        /// The command that installs it.
        install: &'static str,
    },
    /// A program failed.
    #[error("{step} failed ({status}); the last that `{program}` said:\n{said}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// Its last lines.
        said: String,
    },
    /// A program took too long.
    #[error("{step} took longer than {minutes} minutes and was ended; is a package source reachable from here?")]
    TooLong {
        /// What was being done.
        step: &'static str,
        /// The limit.
        minutes: u64,
    },
    /// The file system failed.
    #[error("failed to {action} `{path}`: {source}")]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// On what.
        path: Utf8PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
