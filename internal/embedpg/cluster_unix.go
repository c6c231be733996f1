//go:build linux || darwin || freebsd

package embedpg

import (
	"bufio"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
)

//go:embed supervisor.sh
var supervisorScript string

// Limits. Those in the supervisor's script are shorter than stopMax.
const (
	stopMax    = 60 * time.Second
	restartMax = 30 * time.Second
	portTries  = 10
)

// cluster is a server that Start has started: its run folder and its supervisor.
type cluster struct {
	folder   string
	account  account // that the server runs as
	password string
	port     int

	supervisor *exec.Cmd
	// commands is the pipe to the supervisor, which cleans up at its end of file.
	// Invariant: no other process has it. Go opens it close-on-exec.
	commands *os.File
	replies  *os.File
	reader   *bufio.Reader
	lock     *os.File
}

// startCluster tries installed binaries, then downloaded ones. If all fail, it returns no cluster
// and no error, and tried holds the reasons.
func startCluster(ctx context.Context, o Options, m machine, tried *attempts) (*cluster, string, error) {
	a := serverAccount()

	for _, bin := range m.folders {
		c, err := startInstalled(ctx, o, a, bin)
		if err == nil {
			return c, bin, nil
		}
		if ctx.Err() != nil {
			return nil, "", err
		}
		tried.add("%s: %v", bin, err)
		o.Logger("%s: %v", bin, err)
	}
	if len(m.folders) == 0 {
		tried.add("installed binaries: none found on PATH or in the usual folders")
	}

	c, err := startDownloaded(ctx, o, a, m)
	if err == nil {
		return c, "the download of embedded-postgres", nil
	}
	if ctx.Err() != nil {
		return nil, "", err
	}
	tried.add("download from %s: %v", m.repository, err)
	return nil, "", nil
}

func startInstalled(ctx context.Context, o Options, a account, bin string) (*cluster, error) {
	if err := check(ctx, a, bin); err != nil {
		return nil, err
	}
	parents := temporary()
	if !o.Fsync && os.Getenv("TMPDIR") == "" {
		parents = append(memory(), parents...)
	}
	c, err := launch(ctx, o, a, parents, func(string) string { return bin })
	if err != nil {
		return nil, err
	}
	if err := c.begin(ctx); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// startDownloaded starts the supervisor before the download, so that an interrupted download is
// cleaned up as well.
func startDownloaded(ctx context.Context, o Options, a account, m machine) (*cluster, error) {
	unpacked := func(folder string) string { return filepath.Join(folder, "pgsql") }
	bin := func(folder string) string { return filepath.Join(unpacked(folder), "bin") }

	c, err := launch(ctx, o, a, temporary(), bin) // a folder in memory may not allow programs to run
	if err != nil {
		return nil, err
	}
	o.Logger("downloading PostgreSQL %s from %s", downloadVersion, m.repository)
	if err = fetch(ctx, m, a, c.folder, unpacked(c.folder)); err == nil {
		err = check(ctx, a, bin(c.folder))
	}
	if err == nil {
		err = c.begin(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// fetch downloads into a folder in the run folder. Root downloads into a folder of its own first,
// which remains if root's process is killed meanwhile.
func fetch(ctx context.Context, m machine, a account, run, into string) (err error) {
	if a.credential == nil {
		return download(ctx, m, run, into)
	}
	private, err := os.MkdirTemp("", "embedpgdownload-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(private)) }()
	if err := os.WriteFile(filepath.Join(private, "lock"), nil, 0o600); err != nil { // as in a run folder
		return err
	}
	unpacked := filepath.Join(private, "pgsql")
	if err := download(ctx, m, private, unpacked); err != nil {
		return err
	}
	return a.copyTree(ctx, unpacked, into)
}

// launch creates the run folder in one of parents and starts its supervisor. It does not start
// the server.
func launch(ctx context.Context, o Options, a account, parents []string, bin func(folder string) string) (_ *cluster, err error) {
	folder, err := a.runFolder(ctx, parents)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}()

	c := &cluster{folder: folder, account: a, password: rand.Text()}
	if c.lock, err = lockRun(ctx, folder, a); err != nil {
		return nil, err
	}
	if err = c.write(ctx, o); err == nil {
		err = c.supervise(a, bin(folder))
	}
	if err != nil {
		return nil, errors.Join(err, c.lock.Close())
	}
	return c, nil
}

// write writes the files that initdb needs.
func (c *cluster) write(ctx context.Context, o Options) error {
	return errors.Join(
		c.account.write(ctx, filepath.Join(c.folder, "password"), c.password),
		c.account.write(ctx, filepath.Join(c.folder, "settings"), settings(o)))
}

// settings are appended to postgresql.conf. synchronous_commit stays on even
// without fsync: off, a Restart would lose the last committed transactions.
func settings(o Options) string {
	fsync := "off"
	if o.Fsync {
		fsync = "on"
	}
	return "\nlisten_addresses = '127.0.0.1'" +
		"\nunix_socket_directories = ''" +
		"\nmax_connections = 300" +
		"\nmax_prepared_transactions = 20" +
		"\nfsync = " + fsync + "\n"
}

func (c *cluster) supervise(a account, bin string) error {
	stdin, commands, err := os.Pipe()
	if err != nil {
		return err
	}
	replies, stdout, err := os.Pipe()
	if err != nil {
		return errors.Join(err, stdin.Close(), commands.Close())
	}

	// Without the caller's ctx: it would kill the supervisor, which must outlive all other
	// processes.
	cmd := a.command(context.Background(), "/bin/sh", "-c", supervisorScript, "embedpg", bin, c.folder)
	cmd.Stdin, cmd.Stdout = stdin, stdout
	cmd.ExtraFiles = []*os.File{c.lock}
	err = cmd.Start()
	err = errors.Join(err, stdin.Close(), stdout.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("start the supervisor: %w", err), commands.Close(), replies.Close())
	}
	c.supervisor, c.commands, c.replies, c.reader = cmd, commands, replies, bufio.NewReader(replies)
	return nil
}

// begin initialises and starts the server.
func (c *cluster) begin(ctx context.Context) error {
	if err := c.do(ctx, "initialise"); err != nil {
		return err
	}
	var err error
	for range portTries {
		if c.port, err = freePort(); err != nil {
			return err
		}
		// Another process may have taken the port meanwhile: choose again.
		if err = c.do(ctx, "start "+strconv.Itoa(c.port)); err == nil || !inUse(err) {
			return err
		}
	}
	return err
}

// restart keeps the port, which clients know. The port and the shared memory of the stopped
// server may be in use for another moment.
func (c *cluster) restart(ctx context.Context, during func()) error {
	if err := c.do(ctx, "stop"); err != nil {
		return err
	}
	during()
	for begun := time.Now(); ; {
		err := c.do(ctx, "start "+strconv.Itoa(c.port))
		if err == nil || !inUse(err) || time.Since(begun) > restartMax {
			return err
		}
	}
}

// inUse matches "Address already in use" and "pre-existing shared memory block … is still in
// use". The messages are in English because of environment.
func inUse(err error) bool { return strings.Contains(err.Error(), "in use") }

// do sends the supervisor a command and waits for the answer. Errors contain the server's log.
func (c *cluster) do(ctx context.Context, command string) error {
	logged := c.logSize()

	// The deadline stays in the past, so that no later command reads this answer when it
	// comes late.
	stop := context.AfterFunc(ctx, func() { _ = c.replies.SetReadDeadline(time.Unix(1, 0)) })
	_, err := io.WriteString(c.commands, command+"\n")
	var reply string
	if err == nil {
		reply, err = c.reader.ReadString('\n')
	}
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: no answer from the supervisor: %w", command, err)
	}
	if reply != "ok\n" {
		return fmt.Errorf("%s failed:\n%s", command, c.logSince(logged))
	}
	return nil
}

func (c *cluster) logSize() int64 {
	info, err := os.Lstat(filepath.Join(c.folder, "log"))
	if err != nil {
		return 0 // no log yet
	}
	return info.Size()
}

// logSince returns the last lines of the log after an offset, indented.
func (c *cluster) logSince(offset int64) string {
	ctx, cancel := context.WithTimeout(context.Background(), versionMax)
	defer cancel()
	text, err := c.account.output(ctx, "tail", "-c", fmt.Sprintf("+%d", offset+1), filepath.Join(c.folder, "log"))
	if err != nil {
		return fmt.Sprintf("(no log: %v)", err)
	}
	lines := strings.Split(redact.Text(strings.TrimSpace(text)), "\n")
	lines = lines[max(0, len(lines)-15):]
	return "      " + strings.Join(lines, "\n      ")
}

func (c *cluster) url() url.URL {
	return url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", c.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
}

// close lets the supervisor clean up, and removes the rest: root may remove files that the
// account may not.
func (c *cluster) close() error {
	err := c.commands.Close()
	kill := time.AfterFunc(stopMax, func() {
		_ = syscall.Kill(-c.supervisor.Process.Pid, syscall.SIGKILL)
	})
	_ = c.supervisor.Wait() // its exit status is about the folder, which is removed below
	kill.Stop()
	return errors.Join(err, c.replies.Close(), os.RemoveAll(c.folder), c.lock.Close())
}

// freePort returns a free port below those that systems use for outgoing connections (Linux from
// 32768, others from 49152). With a port from that range, a client that redials while the
// server restarts could get the server's own port, connect to itself, and so block the port.
func freePort() (int, error) {
	var err error
	for range portTries {
		port := 20000 + mathrand.IntN(12000)
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port in %d tries: %w", portTries, err)
}
