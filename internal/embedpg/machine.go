package embedpg

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// oldestMajor is the first version with DROP DATABASE … WITH (FORCE).
const oldestMajor = 13

// machine holds where binaries are looked for.
type machine struct {
	folders    []string // of installed binaries, best first
	repository string   // where embedded-postgres downloads from
	cache      string   // where its archives are kept; "" if nowhere lasting
}

// installed lists the usual folders of PostgreSQL's binaries.
var installed = []string{
	"/usr/lib/postgresql/*/bin", // Debian
	"/usr/pgsql-*/bin",          // postgresql.org's packages for Fedora and relatives
	"/usr/bin",                  // Fedora, Arch, Alpine
	"/usr/libexec/postgresql*",  // Alpine
	"/usr/local/pgsql/bin",      // built from source
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

func thisMachine(ctx context.Context) machine {
	m := machine{repository: "https://repo1.maven.org/maven2"}

	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		m.add(strings.TrimSpace(string(out)))
	}
	for _, program := range []string{"postgres", "initdb"} {
		path, err := exec.LookPath(program)
		if err != nil {
			continue
		}
		m.add(filepath.Dir(path))
		// If postgres is a link, the other programs are in the folder of its target.
		if target, err := filepath.EvalSymlinks(path); err == nil {
			m.add(filepath.Dir(target))
		}
	}
	for _, pattern := range installed {
		matches, _ := filepath.Glob(pattern) // fails only for a bad pattern
		slices.SortFunc(matches, newestFirst)
		for _, folder := range matches {
			m.add(folder)
		}
	}

	// The default folder of embedded-postgres, so that an archive that is there already is
	// not downloaded again.
	if home, err := os.UserHomeDir(); err == nil {
		m.cache = filepath.Join(home, ".embedded-postgres-go")
	}
	return m
}

func (m *machine) add(folder string) {
	if filepath.IsAbs(folder) && !slices.Contains(m.folders, folder) {
		m.folders = append(m.folders, folder)
	}
}

var digits = regexp.MustCompile(`\d+`)

// newestFirst compares paths by the numbers in them: 15 comes before 9.6.
func newestFirst(a, b string) int { return slices.Compare(numbers(b), numbers(a)) }

func numbers(s string) []int {
	var ns []int
	for _, d := range digits.FindAllString(s, -1) {
		n, _ := strconv.Atoi(d) // fails only for a number that does not fit an int
		ns = append(ns, n)
	}
	return ns
}
