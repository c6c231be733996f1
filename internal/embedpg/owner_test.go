//go:build linux || darwin || freebsd

package embedpg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ownerMode makes the test binary an owner that others kill.
const ownerMode = "EMBEDPG_TEST_OWNER"

// own starts a server, tells its address and its supervisor's process, and waits
// for its own end, which comes with the test's at the latest.
func own(mode string) {
	s, err := Start(context.Background(), Options{Own: true})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(s.base.Host, s.cluster.supervisor.Process.Pid)
	if mode == "panic" {
		panic("as a test's timeout does")
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func TestOwnerDies(t *testing.T) {
	signal := func(s syscall.Signal) func(*exec.Cmd) error {
		return func(cmd *exec.Cmd) error { return cmd.Process.Signal(s) }
	}
	tests := map[string]struct {
		mode string
		die  func(*exec.Cmd) error
	}{
		"SIGKILL": {"wait", signal(syscall.SIGKILL)},
		"SIGTERM": {"wait", signal(syscall.SIGTERM)},
		"panic":   {"panic", func(*exec.Cmd) error { return nil }},
		"Ctrl-C": {"wait", func(cmd *exec.Cmd) error { // goes to the whole group
			return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmp := sharedTemp(t)
			cmd, out := startOwner(t, test.mode, tmp)
			address, _ := started(t, out)
			if test.mode == "wait" && !listening(address) {
				t.Fatal("no server to begin with")
			}

			if err := test.die(cmd); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // err: it was killed

			until(t, "its files are gone", func() bool { return empty(t, tmp) })
			// Without its files a server ends by itself, but only a while later.
			if listening(address) {
				t.Error("the server outlived its files")
			}
		})
	}
}

// The server does not exist yet, and must not come to be afterwards.
func TestOwnerDiesWhileStarting(t *testing.T) {
	t.Parallel()
	tmp := sharedTemp(t)
	cmd, _ := startOwner(t, "wait", tmp)
	until(t, "initdb has begun", func() bool {
		found, _ := filepath.Glob(filepath.Join(tmp, "*", "data"))
		return len(found) > 0
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // err: it was killed
	until(t, "its files are gone", func() bool { return empty(t, tmp) })
}

// Nobody is left who could clean up, so the next start does.
func TestSupervisorDiesToo(t *testing.T) {
	t.Parallel()
	tmp := sharedTemp(t)
	cmd, out := startOwner(t, "wait", tmp)
	address, supervisor := started(t, out)
	found, _ := filepath.Glob(filepath.Join(tmp, runPrefix+"*"))
	if len(found) != 1 {
		t.Fatalf("run folders %q, want one", found)
	}
	server := serverProcess(t, found[0])
	old := time.Now().Add(-2 * youngMax)
	if err := os.Chtimes(found[0], old, old); err != nil {
		t.Fatal(err)
	}

	if err := syscall.Kill(supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	removeStale(tmp, serverAccount())
	if empty(t, tmp) {
		t.Error("files removed under a living owner")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // err: it was killed

	until(t, "its files are gone", func() bool {
		removeStale(tmp, serverAccount())
		return empty(t, tmp)
	})
	// By itself the server looks for its files once a minute.
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	until(t, "the server is gone", func() bool { return !listening(address) })
}

func TestStartInterrupted(t *testing.T) {
	tmp := sharedTemp(t)
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		s, err := Start(ctx, Options{Own: true})
		if err == nil {
			err = s.Stop()
		}
		failed <- err
	}()
	until(t, "initdb has begun", func() bool {
		found, _ := filepath.Glob(filepath.Join(tmp, "*", "data"))
		return len(found) > 0
	})
	cancel()
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("Start with a context cancelled under way: %v", err)
	}
	if !empty(t, tmp) {
		t.Error("files remain")
	}
}

// give makes a folder that a test has made the account's.
func give(a account, folder string) error {
	if a.credential == nil {
		return nil
	}
	return os.Chown(folder, int(a.credential.Uid), int(a.credential.Gid))
}

// Whatever the account puts in the place of a file or a folder, root writes into
// nothing of its own, gives away nothing, and hands on no open file of its own.
func TestRootFollowsNoLink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root has an account to guard against")
	}
	a := serverAccount()
	secrets := t.TempDir() // of root alone
	target := filepath.Join(secrets, "lock")
	if err := os.WriteFile(target, []byte("root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(sharedTemp(t), "run")
	if err := errors.Join(os.Mkdir(folder, 0o700), give(a, folder)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"password", "settings", "lock", "pgsql"} {
		if _, err := a.output(t.Context(), "ln", "-s", target, filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{folder: folder, account: a, password: "secret"}
	if err := c.write(t.Context(), Options{}); err == nil {
		t.Error("settings were written through a link")
	}
	if lock, err := lockRun(t.Context(), folder, a); err == nil {
		t.Errorf("%s was opened through a link", lock.Name())
	}
	if err := a.copyTree(t.Context(), t.TempDir(), filepath.Join(folder, "pgsql")); err == nil {
		t.Error("binaries were unpacked through a link")
	}
	// The folder itself is a link.
	trap := filepath.Join(sharedTemp(t), "trap")
	if _, err := a.output(t.Context(), "ln", "-s", secrets, trap); err != nil {
		if err := os.Symlink(secrets, trap); err != nil {
			t.Fatal(err)
		}
	}
	c.folder = trap
	if err := c.write(t.Context(), Options{}); err == nil {
		t.Error("settings were written into a folder of root")
	}
	if lock, err := lockRun(t.Context(), trap, a); err == nil {
		t.Errorf("%s was opened", lock.Name())
	}
	if text := c.logSince(0); strings.Contains(text, "root's") {
		t.Errorf("the log is %s", text)
	}
	files, err := os.ReadDir(secrets)
	text, readErr := os.ReadFile(target)
	info, statErr := os.Stat(target)
	if err := errors.Join(err, readErr, statErr); err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 || string(text) != "root's" || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("root's folder holds %v, its file %q", files, text)
	}
}

func TestStale(t *testing.T) {
	a := account{}
	if os.Geteuid() == 0 {
		// Another account's folders are told apart by their owner.
		a = serverAccount()
	}
	old := time.Now().Add(-2 * youngMax)
	parent := sharedTemp(t)
	make := func(name string, modified time.Time) string {
		folder := filepath.Join(parent, runPrefix+name)
		if err := os.MkdirAll(filepath.Join(folder, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
		owner := a
		if name == "foreign" {
			owner = account{}
		} else if err := give(a, folder); err != nil {
			t.Fatal(err)
		}
		lock, err := lockRun(t.Context(), folder, owner)
		if err != nil {
			t.Fatal(err)
		}
		if name == "held" {
			t.Cleanup(func() { _ = lock.Close() })
		} else if err := lock.Close(); err != nil {
			t.Fatal(err)
		}
		if name == "bare" {
			if err := os.Remove(lock.Name()); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chtimes(folder, modified, modified); err != nil {
			t.Fatal(err)
		}
		return name
	}
	make("dead", old)         // its processes were all killed
	make("bare", old)         // killed before it had a lock
	make("held", old)         // a long run
	make("young", time.Now()) // may be about to take its lock
	if os.Geteuid() == 0 {
		make("foreign", old)
	}
	elsewhere := sharedTemp(t)
	link := filepath.Join(parent, runPrefix+"link")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}

	removeStale(parent, a)

	for name, want := range map[string]bool{
		"dead": false, "bare": false, "held": true, "young": true, "link": true,
		"foreign": os.Geteuid() == 0,
	} {
		_, err := os.Lstat(filepath.Join(parent, runPrefix+name))
		if got := err == nil; got != want {
			t.Errorf("%s exists: %v, want %v", name, got, want)
		}
	}
}

func startOwner(t *testing.T, mode, tmp string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), ownerMode+"="+mode, "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if _, err := cmd.StdinPipe(); err != nil { // closes when we end
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // err: it is gone already
	return cmd, bufio.NewReader(out)
}

// started reads what the owner tells of its server.
func started(t *testing.T, out *bufio.Reader) (address string, supervisor int) {
	t.Helper()
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(line, &address, &supervisor); err != nil {
		t.Fatalf("the owner says %q: %v", line, err)
	}
	return address, supervisor
}

// sharedTemp is t.TempDir for folders that the server's account must reach.
func sharedTemp(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("/tmp", "embedpgtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	return folder
}

func empty(t *testing.T, folder string) bool {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries) == 0
}
