package sqltext

import "testing"

// Which statements end a transaction, however they are written.
func TestEndsTransaction(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"COMMIT": "COMMIT", " \n\tcommit ;": "COMMIT", "Commit and chain": "COMMIT", "/* a /* b */ c */ commit": "COMMIT",
		"-- a\ncommit": "COMMIT", ";;abort": "ABORT", "END": "END", "end transaction": "END", "ROLLBACK": "ROLLBACK",
		"ROLLBACK AND CHAIN": "ROLLBACK", "ROLLBACK WORK": "ROLLBACK", "rollback transaction and no chain": "ROLLBACK",
		"PREPARE TRANSACTION 'x'": "PREPARE TRANSACTION", "COMMIT; BEGIN": "COMMIT", "COMMIT PREPARED 'x'": "COMMIT",
		"SELECT 1; COMMIT": "COMMIT", "SELECT ';'; ROLLBACK": "ROLLBACK", `SELECT E'\';'; ROLLBACK`: "ROLLBACK",
		"SELECT $a$;$a$; COMMIT": "COMMIT", "SELECT $1; COMMIT": "COMMIT", "SELECT 1 -- ;\n; ABORT": "ABORT", "SELECT 1;/**/COMMIT": "COMMIT",
		"SELECT a$b$c; COMMIT": "COMMIT", `SELECT name'c:\'; COMMIT`: "COMMIT", `SELECT U&'\0041'; COMMIT`: "COMMIT",

		"": "", "SELECT 1": "", "ROLLBACK TO s": "", "rollback to savepoint s": "", "ROLLBACK WORK TO s": "", "ROLLBACK TRANSACTION TO SAVEPOINT s": "",
		"SAVEPOINT s": "", "RELEASE s": "", "PREPARE p AS SELECT 1": "", "INSERT INTO commit VALUES (1)": "", "committed()": "", "endpoint": "", "end_of_day()": "",
		"SELECT '; COMMIT'": "", `SELECT "; COMMIT"`: "", "SELECT $$; COMMIT $$": "", "SELECT $a$ ; COMMIT $$ ; COMMIT $a$": "",
		"SELECT 1 -- ; COMMIT": "", "SELECT /* ; COMMIT */ 1; SELECT 2;": "", "SELECT ''';COMMIT'": "", `SELECT E'\'; COMMIT'`: "", "SELECT 'open": "",
		"SELECT $open$ ; COMMIT": "", "/* open": "", "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END": "",
		"DO $$ BEGIN PERFORM 1; END $$": "", "SELECT 1;": "", "SELECT a$b$c; SELECT 1": "",
		`SELECT name'c:\'; SELECT '; COMMIT'`: "", `SELECT "é"`: "", `SELECT é$a$; SELECT '$a$; COMMIT'`: "",
	} {
		if got := EndsTransaction(query); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
}
