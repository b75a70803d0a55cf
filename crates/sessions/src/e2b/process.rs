//! Commands of a sandbox (`process.Process`): started with pipes or a terminal, watched, fed, killed.
//!
//! What a command says goes to the one client that watches it. A client that goes away leaves the command running, as with
//! E2B, and may come back (`Connect`); what was said meanwhile is lost. `pid` counts up from anywhere: it is this module's number,
//! not the sandbox's kernel's.
//!
//! **Invariant:** a command holds its session as long as it runs, and ends with its sandbox or at its own timeout.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{body::Body, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use cove_runtime::{ExecSession, Resize};
use futures_util::stream;
use http::{HeaderMap, Request};
use serde_json::{Map, Value, json};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, interval_at, sleep_until},
};

use super::{E2b, Sandbox, api, connect, not_built};
use crate::{Lease, answer::Refused, interpreter, service::Service};

/// Commands of one sandbox at once.
const COMMANDS_MAX: usize = 64;
/// Messages that wait for a client; then the command waits.
const QUEUE_LEN_MAX: usize = 64;
/// Longest that a command runs when its client says nothing, and at most.
const SECONDS_MAX: u64 = 24 * 3600;
/// Between signs of life.
const KEEPALIVE: Duration = Duration::from_secs(50);
/// Longest wait for the exit code behind the last output.
const EXIT_LIMIT: Duration = Duration::from_secs(60);

/// The commands that run.
#[derive(Default)]
pub(super) struct Processes(Mutex<Commands>);

struct Commands {
    /// Begins anywhere, so that a number that an earlier server gave out means no other command.
    last: u32,
    /// By sandbox and number; a sandbox without any is not in it.
    running: BTreeMap<String, BTreeMap<u32, Command>>,
}

impl Default for Commands {
    fn default() -> Self {
        let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
        Self { last: u32::try_from(random >> 34).unwrap_or(0), running: BTreeMap::new() }
    }
}

struct Command {
    config: Value,
    tag: Option<String>,
    is_pty: bool,
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    resize: Resize,
    watcher: Watcher,
    killed: Arc<Notify>,
}

/// Who gets what a command says.
type Watcher = Arc<Mutex<Option<mpsc::Sender<Bytes>>>>;

impl Processes {
    fn lock(&self) -> MutexGuard<'_, Commands> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all commands of a sandbox.
    pub(super) fn forget(&self, sandbox: &str) {
        for command in self.lock().running.remove(sandbox).unwrap_or_default().into_values() {
            command.killed.notify_one();
        }
    }

    fn add(&self, sandbox: &str, command: Command) -> Result<u32, Refused> {
        let mut all = self.lock();
        if all.running.get(sandbox).is_some_and(|running| running.len() >= COMMANDS_MAX) {
            let words = format!("{COMMANDS_MAX} commands of this sandbox run already; kill some.");
            return Err(Refused::new(429, "TooManyCommands", words));
        }
        all.last = all.last.wrapping_add(1);
        let pid = all.last;
        all.running.entry(sandbox.to_owned()).or_default().insert(pid, command);
        Ok(pid)
    }

    fn remove(&self, sandbox: &str, pid: u32) {
        let mut all = self.lock();
        let Some(running) = all.running.get_mut(sandbox) else { return };
        running.remove(&pid);
        if running.is_empty() {
            all.running.remove(sandbox);
        }
    }

    /// Does something with the command that a selector means: `{"process": {"pid": 1}}`, or a tag.
    fn with<T>(
        &self,
        sandbox: &str,
        asked: &Map<String, Value>,
        act: impl FnOnce(u32, &mut Command) -> T,
    ) -> Result<T, Refused> {
        let selector = asked.get("process").cloned().unwrap_or_default();
        let pid = selector["pid"].as_u64();
        let tag = selector["tag"].as_str();
        let fits = |number: u32, command: &Command| match (pid, tag) {
            (Some(pid), _) => u64::from(number) == pid,
            (None, Some(tag)) => command.tag.as_deref() == Some(tag),
            (None, None) => false,
        };
        let mut all = self.lock();
        let running = all.running.get_mut(sandbox).into_iter().flatten();
        let mut found = running.map(|(pid, command)| (*pid, command)).filter(|(pid, command)| fits(*pid, command));
        let (pid, command) =
            found.next().ok_or_else(|| Refused::new(404, "CommandNotFound", "No such command runs in the sandbox."))?;
        Ok(act(pid, command))
    }
}

/// What is to be run.
struct Asked {
    command: Vec<String>,
    config: Value,
    tag: Option<String>,
    pty: Option<(u16, u16)>,
    has_stdin: bool,
}

impl Service {
    /// The calls of `process.Process`.
    pub(super) async fn e2b_process(
        self: &Arc<Self>,
        e2b: &Arc<E2b>,
        sandbox: &Arc<Sandbox>,
        path: &str,
        request: Request<Body>,
    ) -> Result<Response, Refused> {
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let (head, body) = request.into_parts();
        if matches!(name.as_str(), "Start" | "Connect") {
            let answered = async {
                let asked = connect::only_message(&interpreter::whole(body).await?)?;
                match name.as_str() {
                    "Start" => self.start(e2b, sandbox, &asked, &head.headers).await,
                    _ => watch(e2b, sandbox, &asked),
                }
            };
            let body = answered.await.unwrap_or_else(|refused| Body::from(connect::end(Some(&refused))));
            return Ok(connect::streamed(body));
        }
        let answered = async {
            let asked = api::body(Request::from_parts(head, body)).await?;
            call(e2b, sandbox, &name, &asked).await
        };
        Ok(connect::unary(answered.await))
    }

    async fn start(
        self: &Arc<Self>,
        e2b: &Arc<E2b>,
        sandbox: &Arc<Sandbox>,
        asked: &Map<String, Value>,
        headers: &HeaderMap,
    ) -> Result<Body, Refused> {
        let lease = self.lease_of(sandbox).await?;
        let asked = read(asked, &sandbox.envs, &self.home_of(&lease))?;
        let seconds_max = Duration::from_secs(SECONDS_MAX);
        let limit = connect::timeout_ms(headers).map_or(seconds_max, Duration::from_millis).min(seconds_max);
        let session = self.exec_in(e2b, &lease, asked.command, asked.pty.is_some()).await?;
        if let Some((columns, rows)) = asked.pty {
            session.resize.set(columns, rows);
        }
        let ExecSession { stdin, output, resize, exit } = session;
        let (sender, receiver) = mpsc::channel(QUEUE_LEN_MAX);
        let watcher: Watcher = Arc::new(Mutex::new(Some(sender)));
        let killed = Arc::new(Notify::new());
        let has_stdin = asked.has_stdin || asked.pty.is_some();
        let pid = e2b.processes.add(
            &sandbox.id,
            Command {
                config: asked.config,
                tag: asked.tag,
                is_pty: asked.pty.is_some(),
                stdin: has_stdin.then_some(stdin),
                resize,
                watcher: Arc::clone(&watcher),
                killed: Arc::clone(&killed),
            },
        )?;
        let pump = Pump { pid, is_pty: asked.pty.is_some(), watcher, killed, limit };
        let (e2b, sandbox) = (Arc::clone(e2b), Arc::clone(sandbox));
        tokio::spawn(async move {
            pump.run((output, exit), lease).await;
            e2b.processes.remove(&sandbox.id, pid);
        });
        Ok(received(receiver, None))
    }
}

/// Attaches a client to a command that runs.
fn watch(e2b: &E2b, sandbox: &Sandbox, asked: &Map<String, Value>) -> Result<Body, Refused> {
    let (sender, receiver) = mpsc::channel(QUEUE_LEN_MAX);
    let pid = e2b.processes.with(&sandbox.id, asked, |pid, command| {
        *command.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        pid
    })?;
    Ok(received(receiver, Some(connect::message(&began(pid)))))
}

fn received(receiver: mpsc::Receiver<Bytes>, first: Option<Bytes>) -> Body {
    Body::from_stream(stream::unfold((receiver, first), |(mut receiver, first)| async move {
        let next = match first {
            Some(first) => Some(first),
            None => receiver.recv().await,
        };
        next.map(|bytes| (Ok::<_, std::convert::Infallible>(bytes), (receiver, None)))
    }))
}

fn began(pid: u32) -> Value {
    json!({ "event": { "start": { "pid": pid } } })
}

/// Calls that are answered at once.
async fn call(e2b: &E2b, sandbox: &Sandbox, name: &str, asked: &Map<String, Value>) -> Result<Value, Refused> {
    match name {
        "List" => {
            let all = e2b.processes.lock();
            let running = all.running.get(&sandbox.id).into_iter().flatten();
            let shown =
                |(pid, command): (&u32, &Command)| json!({ "pid": pid, "config": command.config, "tag": command.tag });
            Ok(json!({ "processes": running.map(shown).collect::<Vec<_>>() }))
        }
        "SendInput" => {
            let input = asked.get("input").cloned().unwrap_or_default();
            let text = input["stdin"].as_str().or_else(|| input["pty"].as_str()).unwrap_or_default();
            let bytes = BASE64.decode(text).map_err(|_| invalid("The input is no base64."))?;
            let stdin = e2b.processes.with(&sandbox.id, asked, |_, command| command.stdin.clone())?;
            let closed = || invalid("The command takes no input: start it with `stdin`, or it was closed.");
            let sent = stdin.ok_or_else(closed)?;
            let waited = tokio::time::timeout(EXIT_LIMIT, sent.send(bytes)).await;
            let slow = |_| Refused::new(504, "SessionTimeout", "The command does not read its input.");
            waited.map_err(slow)?.map_err(|_| closed())?;
            Ok(json!({}))
        }
        "CloseStdin" => {
            e2b.processes.with(&sandbox.id, asked, |_, command| drop(command.stdin.take()))?;
            Ok(json!({}))
        }
        "SendSignal" => {
            if asked.get("signal").and_then(Value::as_str) != Some("SIGNAL_SIGKILL") {
                return Err(not_built("Signals other than SIGKILL are not built; run `kill` in the sandbox"));
            }
            e2b.processes.with(&sandbox.id, asked, |_, command| command.killed.notify_one())?;
            Ok(json!({}))
        }
        "Update" => {
            let pty = asked.get("pty").cloned().unwrap_or_default();
            let (columns, rows) = size(&pty["size"]).ok_or_else(|| invalid("`pty.size` needs `cols` and `rows`."))?;
            let is_pty = e2b.processes.with(&sandbox.id, asked, |_, command| {
                command.resize.set(columns, rows);
                command.is_pty
            })?;
            if is_pty { Ok(json!({})) } else { Err(invalid("The command has no terminal.")) }
        }
        _ => Err(not_built("Streamed input is not built; send it in pieces (`SendInput`)")),
    }
}

fn invalid(words: &str) -> Refused {
    Refused::new(400, "InvalidRequestContent", words)
}

fn size(value: &Value) -> Option<(u16, u16)> {
    let side = |name: &str| value[name].as_u64().and_then(|side| u16::try_from(side).ok());
    Some((side("cols")?, side("rows")?))
}

/// Reads what is to be run; the sandbox's own variables come first.
fn read(asked: &Map<String, Value>, envs: &BTreeMap<String, String>, home: &str) -> Result<Asked, Refused> {
    let process = asked.get("process").and_then(Value::as_object).cloned().unwrap_or_default();
    let text = |name: &str| process.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (cmd, cwd) = (text("cmd"), text("cwd"));
    // `env` would take a program with that sign for a variable
    if cmd.is_empty() || cmd.contains(['=', '\0']) {
        return Err(invalid("`process.cmd` is missing, or has a `=` or a zero byte."));
    }
    let args = match process.get("args") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(args)) => {
            let words: Option<Vec<String>> = args.iter().map(|word| word.as_str().map(str::to_owned)).collect();
            words.filter(|words| words.len() <= 1000).ok_or_else(|| invalid("`process.args` must be texts."))?
        }
        Some(_) => return Err(invalid("`process.args` must be texts.")),
    };
    let own = api::pairs(&process, "envs")?;
    api::check_names(&own)?;
    let dir = match (cwd.as_str(), home) {
        ("", home) => home.to_owned(),
        (cwd, _) if cwd.starts_with('/') => cwd.to_owned(),
        (cwd, "") => cwd.to_owned(),
        (cwd, home) => format!("{home}/{cwd}"),
    };
    let mut all = envs.clone();
    all.extend(own);
    let mut command = Vec::new();
    if !dir.is_empty() || !all.is_empty() {
        command.push("env".to_owned());
        if !dir.is_empty() {
            command.extend(["-C".to_owned(), dir.clone()]);
        }
        command.extend(all.iter().map(|(name, value)| format!("{name}={value}")));
    }
    command.push(cmd.clone());
    command.extend(args.iter().cloned());
    let pty = asked.get("pty").filter(|pty| pty.is_object());
    let pty =
        pty.map(|pty| size(&pty["size"]).ok_or_else(|| invalid("`pty.size` needs `cols` and `rows`."))).transpose()?;
    Ok(Asked {
        command,
        config: json!({ "cmd": cmd, "args": args, "envs": all, "cwd": dir }),
        tag: asked.get("tag").and_then(Value::as_str).map(str::to_owned),
        pty,
        has_stdin: asked.get("stdin").and_then(Value::as_bool).unwrap_or(true),
    })
}

/// Carries what a command says to who watches it.
struct Pump {
    pid: u32,
    is_pty: bool,
    watcher: Watcher,
    killed: Arc<Notify>,
    limit: Duration,
}

/// How a command ended.
enum End {
    Exited(i32),
    Killed,
    TooLate,
    Lost,
}

impl Pump {
    async fn run(
        self,
        (mut output, exit): (mpsc::Receiver<(u8, Vec<u8>)>, tokio::sync::oneshot::Receiver<i32>),
        lease: Lease,
    ) {
        self.say(connect::message(&began(self.pid))).await;
        let until = Instant::now() + self.limit;
        let mut alive = interval_at(Instant::now() + KEEPALIVE, KEEPALIVE);
        let end = loop {
            tokio::select! {
                said = output.recv() => match said {
                    Some((stream, bytes)) => {
                        let name = if self.is_pty { "pty" } else if stream == 1 { "stdout" } else { "stderr" };
                        let data = Map::from_iter([(name.to_owned(), Value::from(BASE64.encode(bytes)))]);
                        self.say(connect::message(&json!({ "event": { "data": data } }))).await;
                    }
                    None => {
                        let code = tokio::time::timeout(EXIT_LIMIT, exit).await;
                        break code.ok().and_then(Result::ok).map_or(End::Lost, End::Exited);
                    }
                },
                () = self.killed.notified() => break End::Killed,
                () = sleep_until(until) => break End::TooLate,
                _ = alive.tick() => self.say(connect::message(&json!({ "event": { "keepalive": {} } }))).await,
            }
        };
        // who goes away ends the command
        drop((output, lease));
        let event = |code: i32, is_exited: bool, status: String| {
            let mut end = json!({ "exitCode": code, "exited": is_exited, "status": status });
            if !is_exited {
                end["error"] = end["status"].clone();
            }
            connect::message(&json!({ "event": { "end": end } }))
        };
        match end {
            End::Exited(code) => self.say(event(code, true, format!("exit status {code}"))).await,
            End::Killed => self.say(event(-1, false, "signal: killed".to_owned())).await,
            End::TooLate => {
                let words = format!("The command ran longer than {} ms and was killed.", self.limit.as_millis());
                return self.say(connect::end(Some(&Refused::new(504, "CommandTimeout", words)))).await;
            }
            End::Lost => {
                return self.say(connect::end(Some(&Refused::unreachable("it ended while a command ran")))).await;
            }
        }
        self.say(connect::end(None)).await;
    }

    /// To the client, if one watches. One that is slow makes the command wait for a while, but not its kill.
    async fn say(&self, bytes: Bytes) {
        let sender = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(sender) = sender else { return };
        let bytes = match sender.try_send(bytes) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(bytes) | mpsc::error::TrySendError::Closed(bytes)) => bytes,
        };
        let sent = tokio::select! {
            sent = tokio::time::timeout(EXIT_LIMIT, sender.send(bytes)) => sent,
            // the loop hears of it next
            () = self.killed.notified() => return self.killed.notify_one(),
        };
        if !matches!(sent, Ok(Ok(()))) {
            let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
            if watcher.as_ref().is_some_and(|current| current.same_channel(&sender)) {
                *watcher = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn a_command_has_its_folder_and_its_variables() {
        let envs = BTreeMap::from([("A".to_owned(), "of the sandbox".to_owned()), ("B".to_owned(), "b".to_owned())]);
        let asked = object(json!({
            "process": { "cmd": "/bin/bash", "args": ["-l", "-c", "echo $A"], "envs": { "A": "own" } }, "stdin": false
        }));
        let found = read(&asked, &envs, "/mnt/data").unwrap();
        assert_eq!(found.command, ["env", "-C", "/mnt/data", "A=own", "B=b", "/bin/bash", "-l", "-c", "echo $A"]);
        assert!(!found.has_stdin && found.pty.is_none());
        let plain = read(&object(json!({ "process": { "cmd": "ls" } })), &BTreeMap::new(), "").unwrap();
        assert_eq!(plain.command, ["ls"]);
        let inner =
            object(json!({ "process": { "cmd": "ls", "cwd": "sub" }, "pty": { "size": { "cols": 80, "rows": 24 } } }));
        let inner = read(&inner, &BTreeMap::new(), "/mnt/data").unwrap();
        assert_eq!(
            (inner.command, inner.pty),
            (["env", "-C", "/mnt/data/sub", "ls"].map(String::from).to_vec(), Some((80, 24)))
        );
        for bad in [
            json!({}),
            json!({ "process": { "cmd": "a=b" } }),
            json!({ "process": { "cmd": "ls", "args": [1] } }),
            json!({ "process": { "cmd": "ls", "envs": { "a b": "c" } } }),
            json!({ "process": { "cmd": "ls" }, "pty": { "size": { "cols": 80 } } }),
        ] {
            assert!(read(&object(bad.clone()), &envs, "").is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_command_is_heard_to_its_end_and_killed_when_asked() {
        let lease = || {
            let session = crate::tests::session("e2b-x");
            let allocation = cove_model::SessionAllocation { session, target_port: 80, is_new: false };
            Lease { allocation, guard: Box::new(()) }
        };
        for (is_killed, last) in [(false, r#""exitCode":3"#), (true, "signal: killed")] {
            let (output, receiver) = mpsc::channel(4);
            let (exit, exited) = tokio::sync::oneshot::channel();
            let (sender, mut said) = mpsc::channel(16);
            let killed = Arc::new(Notify::new());
            let watcher = Arc::new(Mutex::new(Some(sender)));
            let limit = Duration::from_secs(60);
            let pump = Pump { pid: 7, is_pty: false, watcher, killed: Arc::clone(&killed), limit };
            let running = tokio::spawn(pump.run((receiver, exited), lease()));
            output.send((2, b"hello".to_vec())).await.unwrap();
            if is_killed {
                killed.notify_one();
                output.closed().await;
            } else {
                drop(output);
                exit.send(3).unwrap();
            }
            running.await.unwrap();
            let mut all = String::new();
            while let Some(bytes) = said.recv().await {
                all.push_str(&String::from_utf8_lossy(&bytes));
            }
            assert!(all.contains(r#""start":{"pid":7}"#) && all.contains(last), "{all}");
            assert!(all.ends_with("\x02\0\0\0\x02{}"), "{all:?}");
        }
    }
}
