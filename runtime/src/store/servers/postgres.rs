//! A PostgreSQL server of the test's own.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// The name and the password of the server's superuser.
pub const USER: &str = "parallax";
pub const PASSWORD: &str = "s3cret of the test";

/// A cluster in a temporary folder, on a port and a socket of its own; stopped and removed when dropped.
pub struct Postgres {
    programs: PathBuf,
    dir: TempDir,
    /// Whom it runs as: the server refuses to be root.
    user: Option<(u32, u32)>,
    port: u16,
}

impl Postgres {
    /// Makes a cluster and starts it. `None`, and why on the terminal, where there is no PostgreSQL; a panic then when
    /// `PARALLAX_TEST_REQUIRE=1`.
    pub fn start() -> Option<Self> {
        let missing = match Self::make() {
            Ok(mut server) => {
                server.restart();
                return Some(server);
            }
            Err(missing) => missing,
        };
        let required = std::env::var("PARALLAX_TEST_REQUIRE").is_ok_and(|value| value == "1");
        assert!(!required, "PARALLAX_TEST_REQUIRE=1, but {missing}");
        eprintln!("SKIPPED: {missing}");
        None
    }

    fn make() -> Result<Self, String> {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let programs = versions
            .map(|version| version.path().join("bin"))
            .filter(|programs| programs.join("initdb").exists())
            .max()
            .ok_or("there is no PostgreSQL in /usr/lib/postgresql (apt install postgresql)")?;
        let dir = TempDir::new().map_err(|e| e.to_string())?;
        let root = fs::metadata(dir.path()).map_err(|e| e.to_string())?.uid() == 0;
        let user = match root {
            false => None,
            true => {
                let id = |what| {
                    let id = Command::new("id").args([what, "postgres"]).output().ok()?;
                    String::from_utf8(id.stdout).ok()?.trim().parse().ok()
                };
                let ids =
                    id("-u").zip(id("-g")).ok_or("root needs a user `postgres` to run the server as")?;
                chown(dir.path(), Some(ids.0), Some(ids.1)).map_err(|e| e.to_string())?;
                Some(ids)
            }
        };
        let server = Self { programs, dir, user, port: 0 };
        server.write("password", PASSWORD);
        let (data, password) = (server.data(), server.path("password"));
        server.run("initdb", |initdb| {
            initdb.args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "-U", USER]);
            initdb.arg("--pwfile").arg(password).arg("-D").arg(data)
        });
        server.configure(&format!("unix_socket_directories = '{}'", server.dir.path().display()));
        Ok(server)
    }

    /// The URL of a database; the server has `postgres`, and what [`Postgres::create`] made.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", PASSWORD.replace(' ', "%20"), self.port)
    }

    /// A file in the server's folder, which the server can read.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that belongs to the server, as it demands of keys.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("the folder takes files");
        if let Some((user, group)) = self.user {
            chown(&path, Some(user), Some(group)).expect("root may give files away");
        }
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("our own file");
        path
    }

    /// Adds lines to `postgresql.conf`, for the next start.
    pub fn configure(&self, lines: &str) {
        let file = fs::OpenOptions::new().append(true).open(self.data().join("postgresql.conf"));
        writeln!(file.expect("initdb made it"), "{lines}").expect("the file takes lines");
    }

    /// Replaces `pg_hba.conf`: who may connect how; for the next start.
    pub fn admit(&self, lines: &str) {
        fs::write(self.data().join("pg_hba.conf"), format!("{lines}\n")).expect("initdb made it");
    }

    /// Does SQL in a database, and returns what it answers, unadorned.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let socket = self.dir.path().to_owned();
        self.run("psql", |psql| {
            psql.args(["-AtXq", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", database, "-c", sql]);
            psql.arg("-h").arg(socket).args(["-p", &self.port.to_string()]).env("PGPASSWORD", PASSWORD)
        })
    }

    /// Kills the server (SIGKILL), with whatever it was doing.
    pub fn kill(&self) {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).expect("it runs");
        let pid = pid.lines().next().expect("its first line is the process").to_owned();
        let killed = Command::new("kill").args(["-9", &pid]).status();
        assert!(killed.is_ok_and(|status| status.success()), "the server was not there");
    }

    /// Starts the server, stopping it first if it runs, and waits until it takes connections.
    pub fn restart(&mut self) {
        self.stop();
        // Whoever takes a free port may lose it before it is used; and after a kill, the server's children are given
        // time to notice.
        for _ in 0..20 {
            if self.port == 0 {
                let free = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
                self.port = free.expect("a free port").port();
            }
            if self.pg_ctl(&["-w", "-o", &format!("-p {} -h 127.0.0.1", self.port), "start"]) {
                return;
            }
        }
        panic!("PostgreSQL does not start: {}", fs::read_to_string(self.path("log")).unwrap_or_default());
    }

    fn stop(&self) {
        self.pg_ctl(&["-w", "-m", "immediate", "stop"]);
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn pg_ctl(&self, arguments: &[&str]) -> bool {
        let mut command = self.command(&self.programs.join("pg_ctl"));
        command.arg("-D").arg(self.data()).arg("-l").arg(self.path("log")).args(arguments);
        // Not our own pipes: the server would keep them open.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }

    fn run(&self, program: &str, with: impl FnOnce(&mut Command) -> &mut Command) -> String {
        let mut command = self.command(&self.programs.join(program));
        let output = with(&mut command).output().expect("it is there");
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}
