package pgtest

import (
	"database/sql"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestDatabase(t *testing.T) {
	names := map[string]bool{}
	for range 2 {
		t.Run("same name", func(t *testing.T) {
			db, url := Database(t)
			name := current(t, db)
			if !strings.Contains(url, "/"+name+"?") {
				t.Errorf("URL %s, want that of %s", url, name)
			}
			if _, err := db.ExecContext(t.Context(), "CREATE TABLE mine ()"); err != nil {
				t.Error(err)
			}
			names[name] = true
		})
	}
	if len(names) != 2 {
		t.Errorf("databases %v, want two", names)
	}

	db, _ := Database(t)
	for name := range names {
		var count int
		err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM pg_database WHERE datname = $1", name).Scan(&count)
		if err != nil || count != 0 {
			t.Errorf("%s after its test: %d, %v, want it dropped", name, count, err)
		}
	}
}

func TestName(t *testing.T) {
	for test, want := range map[string]string{
		"TestA":                  "t_testa_",
		"TestA/über case#01":     "t_testa__ber_case_01_",
		strings.Repeat("x", 200): "t_" + strings.Repeat("x", 45) + "_",
	} {
		got := name(test)
		if !strings.HasPrefix(got, want) || len(got) != len(want)+12 || len(got) > 63 {
			t.Errorf("name(%q) = %q, want %q and 12 more", test, got, want)
		}
		if got == name(test) {
			t.Errorf("name(%q) = %q twice", test, got)
		}
	}
}

// A verdict is what a test would come to.
type verdict struct {
	testing.TB
	is string
}

func (v *verdict) Helper() {}

func (v *verdict) Fatalf(format string, args ...any) { v.is = fmt.Sprintf("failed: "+format, args...) }

func (v *verdict) Skipf(format string, args ...any) {
	if v.is == "" { // Fatalf would not have returned
		v.is = fmt.Sprintf("skipped: "+format, args...)
	}
}

func TestMissing(t *testing.T) {
	for set, want := range map[string]string{
		"":  "skipped: SKIPPED: there is no pgbouncer",
		"1": "failed: REQUIRE_PROGRAMS is set, and there is no pgbouncer",
	} {
		t.Setenv("REQUIRE_PROGRAMS", set)
		v := &verdict{TB: t}
		Missing(v, "there is no %s", "pgbouncer")
		if v.is != want {
			t.Errorf("REQUIRE_PROGRAMS=%q: %s, want %s", set, v.is, want)
		}
	}
}

func current(t *testing.T, db *sql.DB) (name string) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT current_database()").Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}
