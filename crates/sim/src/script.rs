//! Worlds as text: one command a line, the same in files, in golden tests and at the prompt.
//!
//! ```text
//! app NAME [min N] [max N] [cooldown SECONDS] [image IMAGE] [multiple]
//! load NAME flat|diurnal|burst RATE [for SPAN]     RATE in requests per second
//! load NAME herd COUNT                             at every full hour
//! request NAME [COUNT]                             now
//! deploy NAME SUFFIX [image IMAGE] [min N] [max N]
//! restart NAME | stop NAME | start NAME | delete NAME
//! kill NAME                                        its first running replica
//! kill-server                                      and start it again
//! faults crash SECONDS | lost PART | delay MILLISECONDS | long PART | slots N
//! seed N                                           before the first app
//! log on|off
//! advance SPAN                                     90s, 10m, 24h
//! show
//! stats
//! ```
//! Images: `good`, `slow`, `missing`, `flaky`, `crashing`, `deaf`. `#` begins a comment.

use cove_model::{ActiveRevisionsMode, ReplicaPhase, Scale};

use crate::{load::Curve, sim::Sim};

/// A world that takes commands.
#[derive(Clone, Debug)]
pub struct Script {
    sim: Sim,
}

/// Why a command was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// No such command, or not so many words.
    #[error("`{0}` is not a command; see the header of `script.rs`")]
    Command(String),
    /// A word is not what it should be.
    #[error("`{word}` is not {expected}")]
    Word {
        /// What was written.
        word: String,
        /// What would be right.
        expected: &'static str,
    },
    /// No such app.
    #[error("there is no app `{0}`")]
    App(String),
}

impl Default for Script {
    fn default() -> Self {
        Self { sim: Sim::new(0) }
    }
}

impl Script {
    /// Runs every line of a script; gives what it shows. Broken promises end it and stand at the end.
    ///
    /// # Errors
    /// [`ScriptError`] for the first line that is not understood.
    pub fn run(text: &str) -> Result<String, ScriptError> {
        let mut script = Self::default();
        let mut shown = String::new();
        for line in text.lines() {
            shown.push_str(&script.line(line)?);
        }
        Ok(shown)
    }

    /// Runs one line; gives what it shows.
    ///
    /// # Errors
    /// [`ScriptError`] when it is not understood; the world is as before.
    pub fn line(&mut self, line: &str) -> Result<String, ScriptError> {
        let words: Vec<&str> = line.split('#').next().unwrap_or("").split_whitespace().collect();
        let Some((command, rest)) = words.split_first() else { return Ok(String::new()) };
        match (*command, rest) {
            ("seed", [seed]) => self.sim = Sim::new(number(seed)?),
            ("log", ["on"]) => self.sim.log = Some(Vec::new()),
            ("log", ["off"]) => self.sim.log = None,
            ("app", [name, options @ ..]) => self.app(name, options)?,
            ("deploy", [name, suffix, options @ ..]) => self.deploy(name, suffix, options)?,
            ("load", [name, curve @ ..]) => self.load(name, curve)?,
            ("request", [name]) => self.request(name, 1)?,
            ("request", [name, count]) => self.request(name, number(count)?)?,
            ("restart" | "stop" | "start" | "delete" | "kill", [name]) => self.write(command, name)?,
            ("kill-server", []) => self.sim.restart_server(),
            ("faults", faults) => self.faults(faults)?,
            ("advance", [span]) => self.sim.advance(span_ms(span)?),
            ("show", []) => return Ok(self.shown(&self.sim.show())),
            ("stats", []) => return Ok(self.shown(&stats(&self.sim))),
            _ => return Err(ScriptError::Command(line.trim().to_owned())),
        }
        self.sim.plan_dirty();
        Ok(self.shown(""))
    }

    /// The log since the last line, then `text`, then what was broken.
    fn shown(&mut self, text: &str) -> String {
        let mut shown = String::new();
        if let Some(log) = &mut self.sim.log {
            for line in log.drain(..) {
                shown.push_str(&line);
                shown.push('\n');
            }
        }
        shown.push_str(text);
        for violation in self.sim.violations.drain(..) {
            shown.push_str(&format!("VIOLATED {violation}\n"));
        }
        shown
    }

    fn find(&self, name: &str) -> Result<usize, ScriptError> {
        let found = self.sim.apps.iter().rposition(|app| app.app.id.name() == name && !app.is_gone);
        found.ok_or_else(|| ScriptError::App(name.to_owned()))
    }

    fn app(&mut self, name: &str, options: &[&str]) -> Result<(), ScriptError> {
        let mut options = options.to_vec();
        let mode = match options.iter().position(|word| *word == "multiple") {
            Some(at) => {
                options.remove(at);
                ActiveRevisionsMode::Multiple
            }
            None => ActiveRevisionsMode::Single,
        };
        if cove_model::check_app_name(name).is_err() {
            return Err(ScriptError::Word { word: name.to_owned(), expected: "a container app name" });
        }
        let (image, scale) = revision_options(&options, Scale::default())?;
        self.sim.add_app(name, mode, &image, scale);
        Ok(())
    }

    fn deploy(&mut self, name: &str, suffix: &str, options: &[&str]) -> Result<(), ScriptError> {
        let app = self.find(name)?;
        if cove_model::RevisionName::of(name, suffix).is_err() {
            return Err(ScriptError::Word { word: suffix.to_owned(), expected: "a revision suffix" });
        }
        let last = self.sim.apps[app].revisions.last().map(|rev| rev.revision.template.scale.clone());
        let (image, scale) = revision_options(options, last.unwrap_or_default())?;
        let now_ms = self.sim.now_ms;
        self.sim.apps[app].deploy(suffix, &image, scale, now_ms);
        self.sim.dirty.push_back(app);
        Ok(())
    }

    fn load(&mut self, name: &str, curve: &[&str]) -> Result<(), ScriptError> {
        let app = self.find(name)?;
        let (curve, until) = match curve {
            ["herd", count] => (Curve::Herd(u32::try_from(number(count)?).unwrap_or(u32::MAX)), u64::MAX),
            [kind, rate] => (curve_of(kind, rate)?, u64::MAX),
            [kind, rate, "for", span] => (curve_of(kind, rate)?, self.sim.now_ms + span_ms(span)?),
            _ => return Err(ScriptError::Command(curve.join(" "))),
        };
        self.sim.set_load(app, curve, until);
        Ok(())
    }

    fn request(&mut self, name: &str, count: u64) -> Result<(), ScriptError> {
        let app = self.find(name)?;
        (0..count).for_each(|_| self.sim.request(app));
        Ok(())
    }

    fn write(&mut self, command: &str, name: &str) -> Result<(), ScriptError> {
        let app = self.find(name)?;
        match command {
            "stop" => self.sim.set_stopped(app, true),
            "start" => self.sim.set_stopped(app, false),
            "delete" => self.sim.delete(app),
            "restart" => {
                let active = self.sim.apps[app].revisions.iter_mut().rfind(|rev| rev.revision.is_active);
                active.into_iter().for_each(|rev| rev.revision.restart_generation += 1);
                self.sim.dirty.push_back(app);
            }
            _ => {
                let running = self.sim.apps[app].revisions.iter().enumerate().find_map(|(at, rev)| {
                    let is_running = |replica: &&crate::app::Replica| replica.seen.phase == ReplicaPhase::Running;
                    rev.replicas.iter().find(is_running).map(|replica| (at, replica.epoch))
                });
                if let Some((rev, epoch)) = running {
                    self.sim.lose(app, rev, epoch);
                }
            }
        }
        Ok(())
    }

    fn faults(&mut self, words: &[&str]) -> Result<(), ScriptError> {
        let faults = &mut self.sim.faults;
        match words {
            ["crash", seconds] => faults.crash_mean_secs = fraction(seconds)?,
            ["lost", part] => faults.observations_lost = fraction(part)?,
            ["delay", millis] => faults.observation_delay_ms = number(millis)?,
            ["long", part] => faults.long_requests = fraction(part)?,
            ["slots", count] => faults.slots = u32::try_from(number(count)?).unwrap_or(u32::MAX),
            _ => return Err(ScriptError::Command(format!("faults {}", words.join(" ")))),
        }
        Ok(())
    }
}

fn revision_options(options: &[&str], mut scale: Scale) -> Result<(String, Scale), ScriptError> {
    let mut image = "good".to_owned();
    for pair in options.chunks(2) {
        let [option, value] = pair else { return Err(ScriptError::Command(options.join(" "))) };
        let count = || number(value).map(|value| u32::try_from(value).unwrap_or(u32::MAX));
        match *option {
            "image" => image = (*value).to_owned(),
            "min" => scale.min_replicas = count()?,
            "max" => scale.max_replicas = count()?.max(1),
            "cooldown" => scale.cooldown_period_secs = count()?,
            _ => return Err(ScriptError::Word { word: (*option).to_owned(), expected: "min, max, cooldown or image" }),
        }
    }
    Ok((image, scale))
}

fn curve_of(kind: &str, rate: &str) -> Result<Curve, ScriptError> {
    let rate = fraction(rate)?;
    match kind {
        "flat" => Ok(Curve::Flat(rate)),
        "diurnal" => Ok(Curve::Diurnal(rate)),
        "burst" => Ok(Curve::Burst(rate)),
        _ => Err(ScriptError::Word { word: kind.to_owned(), expected: "flat, diurnal, burst or herd" }),
    }
}

fn number(word: &str) -> Result<u64, ScriptError> {
    word.parse().map_err(|_| ScriptError::Word { word: word.to_owned(), expected: "a whole number" })
}

fn fraction(word: &str) -> Result<f64, ScriptError> {
    let value: Option<f64> = word.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| ScriptError::Word { word: word.to_owned(), expected: "a number" })
}

fn span_ms(word: &str) -> Result<u64, ScriptError> {
    let bad = || ScriptError::Word { word: word.to_owned(), expected: "a span such as 500ms, 90s, 10m, 24h" };
    let split = word.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let value: u64 = word[..split].parse().map_err(|_| bad())?;
    let unit = match &word[split..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    value.checked_mul(unit).ok_or_else(bad)
}

fn stats(sim: &Sim) -> String {
    let s = sim.stats();
    format!(
        "requests {}: answered {} (held {}), timed out {}, refused {}, cut by faults {}, cut after grace {}\n",
        s.arrived, s.answered, s.held, s.timed_out, s.refused, s.cut_by_fault, s.cut_after_grace
    )
}
