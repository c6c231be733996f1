package pgtest

import (
	"database/sql"
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

func current(t *testing.T, db *sql.DB) (name string) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT current_database()").Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}
