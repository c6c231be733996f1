//go:build unix && !aix && !solaris

package embedpg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// account is the user that the server runs as. The zero value is the user that
// runs this process.
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

// command prepares a program that runs as the account, in a session of its own
// so that the terminal's Ctrl-C does not reach it.
func (a account) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = "/" // ours may be out of the account's reach
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: a.credential}
	return cmd
}

// output runs a program as the account. An error contains what it printed.
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

// environment is ours without what would change the server's behaviour or the
// language of its messages. TZ also saves initdb its search for the time zone.
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

// runFolder makes a folder that belongs to the account, below the first parent
// that the account can reach and write. Having the account itself make it is the
// one check that knows of permissions, mounts and access lists alike.
func (a account) runFolder(ctx context.Context) (string, error) {
	var failed []string
	for _, parent := range temporary() {
		removeStale(parent, a)
		folder, err := a.output(ctx, "mktemp", "-d", filepath.Join(parent, runPrefix+"XXXXXXXX"))
		if err == nil {
			return folder, nil
		}
		failed = append(failed, fmt.Sprintf("%s (%v)", parent, err))
	}
	return "", fmt.Errorf("no temporary folder for the server's files: %s", strings.Join(failed, ", "))
}

func temporary() []string {
	parents := []string{"/tmp", "/var/tmp"}
	if own, err := filepath.Abs(os.TempDir()); err == nil && own != "/tmp" {
		parents = slices.Insert(parents, 0, own)
	}
	return parents
}

// own gives a file tree to the account.
func (a account) own(root string) error {
	if a.credential == nil {
		return nil
	}
	return filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(a.credential.Uid), int(a.credential.Gid))
	})
}
