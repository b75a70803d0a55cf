//! A machine and the template of its pool: the first one is saved when its program listens, later ones go on from that.
//!
//! It is saved before anybody is told that it listens, so nothing that a user sent is ever in a template. QEMU writes to a
//! pipe and reads a file that it cannot write to, and each machine's memory is its own: none can change what another
//! begins with.
//!
//! **Invariant:** a template is whole or not there: it is made beside and renamed.
//! **Invariant:** whatever fails, the machine goes on, or boots as if there were no templates; every step has a limit.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::{
            fs::{DirBuilderExt as _, OpenOptionsExt as _},
            net::UnixStream,
        },
    },
    time::{Duration, Instant, SystemTime},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_vm::talk::Talk;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};

use super::machine::{Happened, Machine};
use crate::protocol::{MachineOrder, TemplateNews, TemplateOrder};

/// Name of the file in a template's folder with the machine.
pub(crate) const STATE_FILE: &str = "state";

/// Name of the link in a template's folder to the disk that the machine has open.
pub(crate) const DISK_FILE: &str = "disk.erofs";

/// Longest wait for the agent to hold still.
const QUIET_LIMIT: Duration = Duration::from_secs(10);

/// Longest time that a machine stands still to be saved.
const SAVE_LIMIT: Duration = Duration::from_secs(60);

/// Longest wait for a saved machine to run, and then for its agent.
const RESTORE_LIMIT: Duration = Duration::from_secs(30);

/// Longest wait for QEMU to let a machine run.
const GO_ON_LIMIT: Duration = Duration::from_secs(10);

/// A program that listens elsewhere first is waited for so long.
const OTHER_PORTS_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of a saved machine beside its memory, at most.
const STATE_BYTES_MAX: u64 = 64 << 20;

const PIPE_BYTES: i32 = 1 << 20;
const READ_BYTES: usize = 64 << 10;
/// Most reads of one turn, so that others get theirs.
const READS_MAX: usize = 32;

/// What is being done with a template.
#[derive(Debug)]
pub(super) enum Work {
    /// The machine is about to go on from it.
    Restores { talk: Talk, dir: Utf8PathBuf, begun: Instant },
    /// It runs, its agent has not answered yet.
    Resumed { dir: Utf8PathBuf, begun: Instant },
    /// It is to be saved once its program listens; there, since when it listens elsewhere.
    Waits { talk: Talk, to: Save, elsewhere: Option<Instant> },
    /// The agent was asked to hold still.
    Quiesces { talk: Talk, to: Save, begun: Instant },
    /// It is being saved.
    Saves { talk: Talk, copy: Copy, begun: Instant },
    /// It stands still and is to go on.
    GoesOn { talk: Talk, news: TemplateNews },
}

/// What a template is to be made of.
#[derive(Debug)]
pub(super) struct Save {
    dir: Utf8PathBuf,
    part: Utf8PathBuf,
    disk: Utf8PathBuf,
    port: u16,
    bytes_max: u64,
}

/// A machine on its way to a file.
#[derive(Debug)]
pub(super) struct Copy {
    to: Save,
    pipe: File,
    file: File,
    bytes: u64,
    is_written: bool,
}

impl Work {
    /// What the order asks for; `monitor` leads to QEMU.
    pub(super) fn of(
        order: &MachineOrder,
        template: &TemplateOrder,
        replica: &str,
        monitor: UnixStream,
    ) -> io::Result<Self> {
        let talk = Talk::open(monitor)?;
        Ok(match template {
            TemplateOrder::Restore { dir } => Self::Restores { talk, dir: dir.clone(), begun: Instant::now() },
            TemplateOrder::Save { dir, port } => {
                let disk = order.parts.iter().find(|(_, name)| name == "disk");
                let disk = disk.map(|(path, _)| path.clone()).ok_or_else(|| io::Error::other("it has no disk"))?;
                let part = Utf8PathBuf::from(format!("{dir}.{replica}.part"));
                let bytes_max = order.spec.memory_bytes + order.spec.memory_bytes / 64 + STATE_BYTES_MAX;
                let to = Save { dir: dir.clone(), part, disk, port: *port, bytes_max };
                Self::Waits { talk, to, elsewhere: None }
            }
        })
    }

    /// Nothing may be said to the agent but what belongs to this.
    pub(super) fn is_busy(&self) -> bool {
        !matches!(self, Self::Waits { .. })
    }

    /// Where the program listens is not told yet.
    pub(super) fn holds_back(&self) -> bool {
        !matches!(self, Self::Restores { .. } | Self::Resumed { .. })
    }

    pub(super) fn waits_for(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Restores { talk, .. } | Self::GoesOn { talk, .. } => vec![talk.as_fd()],
            Self::Saves { talk, copy, .. } if copy.is_written => vec![talk.as_fd()],
            Self::Saves { talk, copy, .. } => vec![talk.as_fd(), copy.pipe.as_fd()],
            Self::Resumed { .. } | Self::Waits { .. } | Self::Quiesces { .. } => Vec::new(),
        }
    }

    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let (talk, limit) = match self {
            Self::Restores { talk, .. } | Self::GoesOn { talk, .. } => (Some(talk), talk.deadline()),
            Self::Resumed { begun, .. } => (None, Some(*begun + 2 * RESTORE_LIMIT)),
            Self::Waits { elsewhere, .. } => (None, elsewhere.map(|at| at + OTHER_PORTS_LIMIT)),
            Self::Quiesces { begun, .. } => (None, Some(*begun + QUIET_LIMIT)),
            Self::Saves { talk, begun, .. } => (Some(talk), Some(*begun + QUIET_LIMIT + SAVE_LIMIT)),
        };
        // nothing else would wake us to say it
        let says = talk.filter(|talk| talk.has_to_say()).map(|_| now);
        says.or(limit)
    }
}

impl Machine {
    /// QEMU was started: one that goes on from a template is told from which.
    pub(super) fn begin_work(&mut self, now: Instant) {
        if let Some(Work::Restores { talk, dir, begun }) = &mut self.work {
            *begun = now;
            // the one that was used last is dropped last
            let _ = File::open(&*dir).and_then(|folder| folder.set_modified(SystemTime::now()));
            match File::open(dir.join(STATE_FILE)) {
                Ok(file) => talk.restore(file.into(), RESTORE_LIMIT),
                // what QEMU never got ends at once, as any other failure to restore
                Err(_) => talk.go_on(Duration::ZERO),
            }
        }
    }

    /// Does what can be done without waiting.
    pub(super) fn work_turn(&mut self, now: Instant, happened: &mut Vec<Happened>) {
        let Some(work) = self.work.take() else { return };
        self.work = match work {
            Work::Restores { mut talk, dir, begun } => match talk.turn() {
                Ok(false) => Some(Work::Restores { talk, dir, begun }),
                Ok(true) => {
                    self.say_resume();
                    Some(Work::Resumed { dir, begun })
                }
                Err(error) => {
                    not_restored(&dir, error.to_string(), happened);
                    None
                }
            },
            Work::Resumed { dir, begun } if now >= begun + 2 * RESTORE_LIMIT => {
                not_restored(&dir, "its agent does not answer".to_owned(), happened);
                None
            }
            Work::Waits { talk, to, elsewhere } if elsewhere.is_some_and(|at| now >= at + OTHER_PORTS_LIMIT) => {
                Some(self.quiesce(talk, to, now))
            }
            Work::Quiesces { to, begun, .. } if now >= begun + QUIET_LIMIT => {
                self.resume_here(not_saved(&to, "its agent does not hold still".to_owned()), happened);
                None
            }
            Work::Saves { talk, copy, begun } => Some(save_turn(talk, copy, begun)),
            Work::GoesOn { mut talk, news } => match talk.turn() {
                Ok(false) => Some(Work::GoesOn { talk, news }),
                Ok(true) => {
                    self.resume_here(news, happened);
                    None
                }
                Err(error) => {
                    happened.push(Happened::Template(news));
                    happened.push(Happened::Again(format!("the machine did not go on after it was saved: {error}")));
                    None
                }
            },
            other => Some(other),
        };
    }

    /// The program listens at a port, which is told when the machine was saved.
    pub(super) fn hold_back(&mut self, port: u16, now: Instant) {
        self.held_back.push(port);
        self.work = match self.work.take() {
            Some(Work::Waits { talk, to, .. }) if to.port == port => Some(self.quiesce(talk, to, now)),
            Some(Work::Waits { talk, to, elsewhere }) => {
                Some(Work::Waits { talk, to, elsewhere: elsewhere.or(Some(now)) })
            }
            other => other,
        };
    }

    fn quiesce(&mut self, talk: Talk, to: Save, now: Instant) -> Work {
        // what is owed goes before: nothing may be on the way while it is saved
        let _ = self.link.outgoing();
        self.link.quiesce();
        Work::Quiesces { talk, to, begun: now }
    }

    /// The agent holds still.
    pub(super) fn quiet(&mut self, happened: &mut Vec<Happened>) {
        self.work = match self.work.take() {
            Some(Work::Quiesces { mut talk, to, begun }) => match begin_save(&mut talk, &to) {
                Ok((pipe, file)) => {
                    Some(Work::Saves { talk, copy: Copy { to, pipe, file, bytes: 0, is_written: false }, begun })
                }
                Err(error) => {
                    self.resume_here(not_saved(&to, error.to_string()), happened);
                    None
                }
            },
            other => other,
        };
    }

    /// The program of a copy was told of: it runs.
    pub(super) fn restored(&mut self, now: Instant, happened: &mut Vec<Happened>) {
        self.work = match self.work.take() {
            Some(Work::Resumed { begun, .. }) => {
                happened.push(Happened::Template(TemplateNews::Restored { ms: ms(now - begun) }));
                None
            }
            other => other,
        };
    }

    /// Goes on where it was, and tells what was held back.
    fn resume_here(&mut self, news: TemplateNews, happened: &mut Vec<Happened>) {
        self.say_resume();
        happened.push(Happened::Template(news));
        happened.extend(self.held_back.drain(..).map(Happened::Listening));
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What cannot be gone on from is of no use to others either.
fn not_restored(dir: &Utf8Path, reason: String, happened: &mut Vec<Happened>) {
    let bad = Utf8PathBuf::from(format!("{dir}.bad.part"));
    if fs::rename(dir, &bad).is_ok() {
        let _ = fs::remove_dir_all(&bad);
    }
    happened.push(Happened::Template(TemplateNews::NotRestored { reason: reason.clone() }));
    happened.push(Happened::Again(format!("the machine could not go on as a copy ({reason}); it boots instead")));
}

fn not_saved(to: &Save, reason: String) -> TemplateNews {
    let _ = fs::remove_dir_all(&to.part);
    TemplateNews::NotSaved { reason }
}

fn begin_save(talk: &mut Talk, to: &Save) -> io::Result<(File, File)> {
    if to.part.exists() {
        // of an earlier start of the same replica
        fs::remove_dir_all(&to.part)?;
    }
    DirBuilder::new().mode(0o700).create(&to.part)?;
    fs::hard_link(&to.disk, to.part.join(DISK_FILE))?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to.part.join(STATE_FILE))?;
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // a smaller one is slower and no worse
    let _ = fcntl(&ours, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    talk.save(theirs, SAVE_LIMIT);
    Ok((File::from(ours), file))
}

fn save_turn(mut talk: Talk, mut copy: Copy, begun: Instant) -> Work {
    let said = talk.turn();
    let turned = said.map_err(|error| error.to_string()).and_then(|is_said| Ok((is_said, copy.turn()?)));
    let news = match turned {
        Ok((true, true)) => match fs::rename(&copy.to.part, &copy.to.dir) {
            Ok(()) => TemplateNews::Saved { ms: ms(begun.elapsed()), bytes: copy.bytes },
            Err(error) => not_saved(&copy.to, error.to_string()),
        },
        Ok(_) if begun.elapsed() < QUIET_LIMIT + SAVE_LIMIT => return Work::Saves { talk, copy, begun },
        Ok(_) => not_saved(&copy.to, format!("it took longer than {} s", SAVE_LIMIT.as_secs())),
        Err(reason) => not_saved(&copy.to, reason),
    };
    talk.go_on(GO_ON_LIMIT);
    Work::GoesOn { talk, news }
}

impl Copy {
    /// Passes on what QEMU has written; `true` when that was all.
    fn turn(&mut self) -> Result<bool, String> {
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..READS_MAX {
            if self.is_written {
                break;
            }
            match self.pipe.read(&mut buffer) {
                Ok(0) => self.is_written = true,
                Ok(count) => {
                    self.bytes += count as u64;
                    if self.bytes > self.to.bytes_max {
                        return Err(format!("it has more than {} bytes", self.to.bytes_max));
                    }
                    self.file.write_all(&buffer[..count]).map_err(|error| error.to_string())?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(self.is_written)
    }
}
