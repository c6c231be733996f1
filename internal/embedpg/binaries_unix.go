//go:build linux || darwin || freebsd

package embedpg

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const versionMax = 10 * time.Second

// check returns an error if the account can't run the binaries in a folder.
func check(ctx context.Context, a account, bin string) error {
	for _, program := range []string{"initdb", "pg_ctl", "postgres"} {
		info, err := os.Stat(filepath.Join(bin, program))
		switch {
		case err != nil:
			return fmt.Errorf("no %s", program)
		case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
			return fmt.Errorf("%s is not executable", program)
		}
	}

	// Running it also detects missing libraries and missing access to folders.
	ctx, cancel := context.WithTimeout(ctx, versionMax)
	defer cancel()
	text, err := a.output(ctx, filepath.Join(bin, "postgres"), "--version")
	if err != nil {
		return fmt.Errorf("postgres --version %w", err)
	}
	version := numbers(text)
	if len(version) == 0 || version[0] < oldestMajor {
		return fmt.Errorf("%s is older than %d", text, oldestMajor)
	}
	return nil
}
