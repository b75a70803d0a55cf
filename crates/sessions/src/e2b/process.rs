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
    sync::{Notify, Semaphore, mpsc},
    time::{Instant, interval_at, sleep_until, timeout},
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
/// Bytes of a piece of input. A driver lets 64 pieces wait, so a command that reads nothing keeps 1 MiB.
const PIECE_BYTES: usize = 16 << 10;
/// Bytes of messages to one command that are still to be passed on in pieces. The longest request has less, so a message that
/// comes alone always fits.
const INPUT_BYTES_MAX: usize = 4 << 20;
/// Longest wait for a command to read a message.
const INPUT_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a tag.
const TAG_BYTES_MAX: usize = 256;
/// Bytes of what a client wants to be run: program, words, variables, folder. An order to a driver has no more either.
const CONFIG_BYTES_MAX: usize = 64 << 10;

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
    about: Arc<About>,
    is_pty: bool,
    stdin: Option<Input>,
    resize: Resize,
    watcher: Watcher,
    killed: Arc<Notify>,
}

/// What a command is, as it is shown.
struct About {
    config: Value,
    tag: Option<String>,
}

/// The way to what a command reads.
#[derive(Clone)]
struct Input {
    pieces: mpsc::Sender<Vec<u8>>,
    /// Whose message is passed on: pieces of two are never mixed.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Bytes that messages which are passed on or wait for their turn may still have.
    room: Arc<Semaphore>,
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

    /// What runs in a sandbox, by number.
    fn list(&self, sandbox: &str) -> Vec<(u32, Arc<About>)> {
        let all = self.lock();
        let running = all.running.get(sandbox).into_iter().flatten();
        running.map(|(pid, command)| (*pid, Arc::clone(&command.about))).collect()
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
            (None, Some(tag)) => command.about.tag.as_deref() == Some(tag),
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

impl Input {
    fn new(pieces: mpsc::Sender<Vec<u8>>) -> Self {
        Self { pieces, turn: Arc::default(), room: Arc::new(Semaphore::new(INPUT_BYTES_MAX)) }
    }

    /// Passes a message on as fast as the command reads. What it has when `limit` is over it keeps; the rest is dropped.
    async fn send(&self, bytes: &[u8], limit: Duration) -> Result<(), Refused> {
        let full = |_| {
            let words = "Other input waits for this command already; send the next when it has read that.";
            Refused::new(429, "TooMuchInput", words)
        };
        let _room = self.room.try_acquire_many(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).map_err(full)?;
        let mut sent = 0;
        let passing = async {
            let _turn = self.turn.lock().await;
            for piece in bytes.chunks(PIECE_BYTES) {
                self.pieces.send(piece.to_vec()).await.map_err(|_| takes_none())?;
                sent += piece.len();
            }
            Ok::<_, Refused>(())
        };
        let passed = timeout(limit, passing).await;
        passed.unwrap_or_else(|_| {
            let words = format!(
                "The command does not read its input: {sent} of {} bytes were passed on within {} s.",
                bytes.len(),
                limit.as_secs()
            );
            Err(Refused::new(504, "SessionTimeout", words))
        })
    }
}

/// What is to be run.
struct Asked {
    command: Vec<String>,
    about: About,
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
            call(e2b, sandbox, &name, asked).await
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
                about: Arc::new(asked.about),
                is_pty: asked.pty.is_some(),
                stdin: has_stdin.then(|| Input::new(stdin)),
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
async fn call(e2b: &E2b, sandbox: &Sandbox, name: &str, mut asked: Map<String, Value>) -> Result<Value, Refused> {
    match name {
        "List" => {
            let running = e2b.processes.list(&sandbox.id);
            let shown =
                |(pid, about): &(u32, Arc<About>)| json!({ "pid": pid, "config": about.config, "tag": about.tag });
            Ok(json!({ "processes": running.iter().map(shown).collect::<Vec<_>>() }))
        }
        "SendInput" => {
            // while it waits it is held once, not also as the text that it was
            let bytes = input_of(asked.remove("input"))?;
            let stdin = e2b.processes.with(&sandbox.id, &asked, |_, command| command.stdin.clone())?;
            drop(asked);
            stdin.ok_or_else(takes_none)?.send(&bytes, INPUT_LIMIT).await?;
            Ok(json!({}))
        }
        "CloseStdin" => {
            e2b.processes.with(&sandbox.id, &asked, |_, command| drop(command.stdin.take()))?;
            Ok(json!({}))
        }
        "SendSignal" => {
            if asked.get("signal").and_then(Value::as_str) != Some("SIGNAL_SIGKILL") {
                return Err(not_built("Signals other than SIGKILL are not built; run `kill` in the sandbox"));
            }
            e2b.processes.with(&sandbox.id, &asked, |_, command| command.killed.notify_one())?;
            Ok(json!({}))
        }
        "Update" => {
            let pty = asked.get("pty").cloned().unwrap_or_default();
            let (columns, rows) = size(&pty["size"]).ok_or_else(|| invalid("`pty.size` needs `cols` and `rows`."))?;
            let is_pty = e2b.processes.with(&sandbox.id, &asked, |_, command| {
                command.resize.set(columns, rows);
                command.is_pty
            })?;
            if is_pty { Ok(json!({})) } else { Err(invalid("The command has no terminal.")) }
        }
        _ => Err(not_built("Streamed input is not built; send it in pieces (`SendInput`)")),
    }
}

/// The bytes of a message to a command.
fn input_of(input: Option<Value>) -> Result<Vec<u8>, Refused> {
    let input = input.unwrap_or_default();
    let text = input["stdin"].as_str().or_else(|| input["pty"].as_str()).unwrap_or_default();
    BASE64.decode(text).map_err(|_| invalid("The input is no base64."))
}

fn takes_none() -> Refused {
    invalid("The command takes no input: start it with `stdin`, or it was closed.")
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
    let pairs = own.iter().map(|(name, value)| name.len() + value.len());
    let bytes = args.iter().map(String::len).chain(pairs).sum::<usize>() + cmd.len() + cwd.len();
    if bytes > CONFIG_BYTES_MAX {
        let kib = CONFIG_BYTES_MAX >> 10;
        return Err(invalid(&format!("`process` has more than {kib} KiB; write long texts to a file and run that.")));
    }
    let tag = asked.get("tag").and_then(Value::as_str).map(str::to_owned);
    if tag.as_ref().is_some_and(|tag| tag.len() > TAG_BYTES_MAX) {
        return Err(invalid(&format!("`tag` is longer than {TAG_BYTES_MAX} bytes.")));
    }
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
        about: About { config: json!({ "cmd": cmd, "args": args, "envs": all, "cwd": dir }), tag },
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
                        let code = timeout(EXIT_LIMIT, exit).await;
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
            sent = timeout(EXIT_LIMIT, sender.send(bytes)) => sent,
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

    #[test]
    fn what_is_kept_of_a_command_has_limits() {
        let (long, tag) = ("x".repeat(CONFIG_BYTES_MAX - 2), "t".repeat(TAG_BYTES_MAX));
        let envs = BTreeMap::from([("OF_THE_SANDBOX".to_owned(), "is not counted".to_owned())]);
        for (asked, is_good) in [
            (json!({ "process": { "cmd": "ls", "args": [long] } }), true),
            (json!({ "process": { "cmd": "ls", "args": [long, "x"] } }), false),
            (json!({ "process": { "cmd": "ls", "args": [long], "cwd": "/" } }), false),
            (json!({ "process": { "cmd": "ls", "args": [long], "envs": { "A": "" } } }), false),
            (json!({ "process": { "cmd": "ls" }, "tag": tag }), true),
            (json!({ "process": { "cmd": "ls" }, "tag": format!("{tag}t") }), false),
        ] {
            let status = read(&object(asked), &envs, "").map_err(|refused| refused.error.status);
            assert_eq!(status.map(|_| ()), if is_good { Ok(()) } else { Err(400) });
        }
    }

    #[tokio::test]
    async fn a_long_message_goes_in_pieces_and_waits_for_a_while() {
        let [message, other] = [1_u8, 2].map(|byte| vec![byte; 5 * PIECE_BYTES + 1]);
        let (sender, mut pieces) = mpsc::channel(2);
        let input = Input::new(sender);
        let heard = async {
            let mut all = Vec::new();
            while all.len() < message.len() + other.len() {
                let piece = pieces.recv().await.unwrap();
                assert!(piece.len() <= PIECE_BYTES);
                all.extend(piece);
            }
            all
        };
        let hour = Duration::from_secs(3600);
        let (first, second, heard) = tokio::join!(input.send(&message, hour), input.send(&other, hour), heard);
        assert!(first.is_ok() && second.is_ok());
        assert!(heard == [&message[..], &other].concat(), "they are not mixed");
        let refused = input.send(&message, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(refused.error.status, 504);
        assert!(refused.error.message.contains(&format!("{} of {} bytes", 2 * PIECE_BYTES, message.len())));
        assert_eq!(input.room.available_permits(), INPUT_BYTES_MAX);
        drop(pieces);
        assert_eq!(input.send(&message, hour).await.unwrap_err().error.status, 400);
    }

    #[tokio::test]
    async fn messages_that_wait_for_a_command_have_a_limit() {
        let (sender, pieces) = mpsc::channel(1);
        let input = Input::new(sender);
        let message = vec![0; INPUT_BYTES_MAX / 2 + 1];
        let waiting = tokio::spawn({
            let (input, message) = (input.clone(), message.clone());
            async move { input.send(&message, Duration::from_secs(3600)).await }
        });
        while input.room.available_permits() == INPUT_BYTES_MAX {
            tokio::task::yield_now().await;
        }
        let refused = input.send(&message, Duration::from_secs(3600)).await.unwrap_err();
        assert_eq!((refused.error.status, refused.error.code.as_str()), (429, "TooMuchInput"));
        drop(pieces);
        assert!(waiting.await.unwrap().is_err());
        assert_eq!(input.room.available_permits(), INPUT_BYTES_MAX);
    }

    #[test]
    fn commands_are_listed_as_they_were_asked_for() {
        let processes = Processes::default();
        let command = |tag: &str| Command {
            about: Arc::new(About { config: json!({ "cmd": "ls" }), tag: Some(tag.to_owned()) }),
            is_pty: false,
            stdin: None,
            resize: Resize::new(|_, _| {}),
            watcher: Watcher::default(),
            killed: Arc::default(),
        };
        let pids = ["one", "two"].map(|tag| processes.add("box", command(tag)).unwrap());
        assert!(processes.add("other", command("three")).is_ok());
        let all = processes.list("box");
        let listed: Vec<_> = all.iter().map(|(pid, about)| (*pid, about.tag.as_deref())).collect();
        assert_eq!(listed, [(pids[0], Some("one")), (pids[1], Some("two"))]);
        assert!(processes.list("none").is_empty());
        let selector = object(json!({ "process": { "tag": "two" } }));
        assert_eq!(processes.with("box", &selector, |pid, _| pid).ok(), Some(pids[1]));
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
