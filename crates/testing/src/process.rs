//! How servers are started, owned and ended: never as root, never outliving the test process.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// The unprivileged user that servers run as while the tests run as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// `postgres`, else `nobody`, when this process is root; `None` when it is not, and servers simply
/// run as the user of the test.
pub fn server_user() -> Option<&'static ServerUser> {
    static USER: OnceLock<Option<ServerUser>> = OnceLock::new();
    USER.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let find = |wanted: &str| {
            passwd.lines().find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next().filter(|name| *name == wanted)?;
                let uid = fields.nth(1)?.parse().ok()?;
                let gid = fields.next()?.parse().ok()?;
                Some(ServerUser { name: name.to_owned(), uid, gid })
            })
        };
        let user = find("postgres").or_else(|| find("nobody"));
        assert!(user.is_some(), "running as root, and there is neither a user postgres nor nobody");
        user
    })
    .as_ref()
}

/// Hands `path`, and all below it, to the user that servers run as. Links are not followed.
pub fn own(path: &Path) {
    let Some(user) = server_user() else { return };
    let chown = |path: &Path| {
        std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))
            .unwrap_or_else(|error| panic!("handing {} to {}: {error}", path.display(), user.name));
    };
    chown(path);
    if path.is_symlink() || !path.is_dir() {
        return;
    }
    let entries = std::fs::read_dir(path)
        .unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
    for entry in entries {
        own(&entry.unwrap_or_else(|error| panic!("reading {}: {error}", path.display())).path());
    }
}

/// Lets `command` run as the user for servers.
pub(crate) fn as_server_user(command: &mut Command) -> &mut Command {
    if let Some(user) = server_user() {
        // std drops the supplementary groups as well.
        command.uid(user.uid).gid(user.gid);
    }
    command
}

type Request = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts `command` so that the kernel sends it `signal` when this process ends, however it ends.
///
/// The kernel watches the *thread* that started a child, and a test's thread ends long before the
/// process does; so one thread that never ends starts them all.
pub(crate) fn spawn(mut command: Command, signal: Signal) -> io::Result<Child> {
    static STARTER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::Builder::new()
            .name("server starter".into())
            .spawn(move || {
                for (mut command, answer) in requests {
                    let _ = answer.send(command.spawn());
                }
            })
            .unwrap_or_else(|error| panic!("starting the thread that starts servers: {error}"));
        sender
    });
    let parent = getpid();
    // Set in the child, after it has changed its user: a change of user clears it.
    let die_with_parent = move || {
        set_parent_process_death_signal(Some(signal))?;
        if getppid() != Some(parent) {
            return Err(io::Error::other("the test ended"));
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing unless the
    // parent is gone, when nobody is left to be harmed.
    unsafe { command.pre_exec(die_with_parent) };
    let (answer, answers) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts servers is gone");
    starter.send((command, answer)).map_err(|_| gone())?;
    answers.recv().map_err(|_| gone())?
}

/// The direct children of a process.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| state(*pid).is_some_and(|(_, its)| its == parent))
        .collect()
}

/// Whether a process is there and not merely waiting to be reaped.
pub(crate) fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// State and parent of a process, from /proc/PID/stat.
fn state(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may itself hold brackets and spaces.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
