//go:build linux || darwin || freebsd

package embedpg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// youngMax is how long a run folder may exist without its lock. Bad interleaving:
//  1. A creates its folder;
//  2. B finds it without a lock and removes it;
//  3. A goes on in a folder that is gone.
//
// B does not touch young folders. So A would have to pause this long between two system calls.
const youngMax = 10 * time.Minute

// lockRun takes the lock that marks a run folder as in use. The lock belongs to the open file: a
// process that inherits the file holds the lock too, and the kernel releases it when the last
// of them ends.
func lockRun(ctx context.Context, folder string, a account) (*os.File, error) {
	path := filepath.Join(folder, "lock")
	if err := a.write(ctx, path, ""); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	// The supervisor inherits it, so the file must belong to its account.
	info, err := lock.Stat()
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() || int(stat.Uid) != a.uid() {
		return nil, errors.Join(fmt.Errorf("%s is not the file that was created there", path), lock.Close())
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close())
	}
	return lock, nil
}

// removeStale removes the account's run folders in parent that no owner and no supervisor has
// locked. It ignores errors, since no caller depends on it.
func removeStale(parent string, a account) {
	folders, _ := filepath.Glob(filepath.Join(parent, runPrefix+"*"))
	for _, folder := range folders {
		if stale(folder, a) {
			_ = os.RemoveAll(folder)
		}
	}
}

func stale(folder string, a account) bool {
	info, err := os.Lstat(folder)
	if err != nil || !info.IsDir() || time.Since(info.ModTime()) < youngMax {
		return false
	}
	// In a shared /tmp, another user may have created a folder with this prefix.
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != a.uid() {
		return false
	}

	// NONBLOCK and NOFOLLOW: opening must be harmless, whatever is there.
	lock, err := os.OpenFile(filepath.Join(folder, "lock"), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return false
	}
	defer lock.Close()
	return syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}
