//go:build linux || darwin || freebsd

package embedpg

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// account is the user that runs the server. The zero value is the user of this process.
type account struct {
	credential *syscall.Credential
}

// serverAccount returns an unprivileged account: PostgreSQL refuses to run as root.
func serverAccount() account {
	if os.Geteuid() != 0 {
		return account{}
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return account{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		}
	}
	return account{&syscall.Credential{Uid: 65534, Gid: 65534}}
}

func (a account) uid() int {
	if a.credential == nil {
		return os.Geteuid()
	}
	return int(a.credential.Uid)
}

// command prepares a program that runs as the account, in a session of its own, so that Ctrl-C
// in the terminal does not reach it.
func (a account) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = "/" // the account may not have access to the current folder
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: a.credential}
	return cmd
}

// output runs a program as the account. An error contains the program's output.
func (a account) output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := a.command(ctx, name, args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	switch {
	case err != nil && text != "":
		err = fmt.Errorf("as user %d: %w: %s", a.uid(), err, text)
	case err != nil:
		err = fmt.Errorf("as user %d: %w", a.uid(), err)
	}
	return text, err
}

// environment returns the environment without variables that would change the server's behaviour
// or the language of its messages. TZ is set, which also spares initdb a search.
func environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.HasPrefix(name, "PG") || strings.HasPrefix(name, "LC_") ||
			name == "LANG" || name == "LANGUAGE" || name == "TZ" || name == "HOME"
	})
	return append(env, "LC_ALL=C", "TZ=UTC", "HOME=/")
}

// runPrefix starts the name of every run folder.
const runPrefix = "embedpg-"

// runFolder creates a folder that belongs to the account, in the first of parents in which the
// account can. The account itself creates it: no other check covers permissions, mounts and
// access lists.
func (a account) runFolder(ctx context.Context, parents []string) (string, error) {
	var failed []string
	for _, parent := range parents {
		removeStale(parent, a)
		folder, err := a.output(ctx, "mktemp", "-d", filepath.Join(parent, runPrefix+"XXXXXXXX"))
		if err == nil {
			return folder, nil
		}
		failed = append(failed, fmt.Sprintf("%s (%v)", parent, err))
	}
	return "", fmt.Errorf("no temporary folder for the server's files: %s", strings.Join(failed, ", "))
}

// memory returns Linux's folder for files in memory, if it has enough space for a test's server.
// There a new database takes an eighth of the time.
func memory() []string {
	const folder, enough = "/dev/shm", 4 << 30 // containers have 64 MiB
	var fs syscall.Statfs_t
	if runtime.GOOS != "linux" || syscall.Statfs(folder, &fs) != nil || uint64(fs.Bavail)*uint64(fs.Bsize) < enough {
		return nil
	}
	return []string{folder}
}

func temporary() []string {
	parents := []string{"/tmp", "/var/tmp"}
	if own, err := filepath.Abs(os.TempDir()); err == nil && own != "/tmp" {
		parents = slices.Insert(parents, 0, own)
	}
	return parents
}

// The functions below work in a run folder. For root, a folder of another account is dangerous:
// a process of that account can replace a file that root is about to write or to chown by a
// symbolic link. So the account itself reads and writes. Root only removes, which follows no
// link.

// write creates a file in a run folder. The file must not exist.
func (a account) write(ctx context.Context, path, text string) error {
	cmd := a.command(ctx, "/bin/sh", "-c", `umask 077; set -C; cat >"$1"`, "embedpg", path)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write %s as user %d: %w: %s", path, a.uid(), err, bytes.TrimSpace(out))
	}
	return nil
}

// copyTree copies the content of a folder into a new folder in a run folder.
func (a account) copyTree(ctx context.Context, from, to string) error {
	cmd := a.command(ctx, "/bin/sh", "-c", `umask 077; mkdir "$1" && exec tar -xf - -C "$1"`, "embedpg", to)
	stream, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	archive := tar.NewWriter(stream)
	err = errors.Join(archive.AddFS(os.DirFS(from)), archive.Close(), stream.Close())
	if waited := cmd.Wait(); waited != nil {
		err = fmt.Errorf("%w: %s", waited, bytes.TrimSpace(said.Bytes()))
	}
	if err != nil {
		return fmt.Errorf("copy to %s as user %d: %w", to, a.uid(), err)
	}
	return nil
}
