package guests

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestExecSeesChanges: what changes here while a command runs is seen there, through the
// overlay: a file is replaced, one appears where there was none, and one goes.
func TestExecSeesChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	put("file", "first\n")
	put("gone", "gone\n")
	e := execVole(t, 5, []string{"--cwd", dir}, "sh", "-c", `
cat file gone later 2>/dev/null; echo looked
seen() {
	i=0; until "$@" 2>/dev/null; do sleep 0.1; i=$((i+1)); [ $i -lt 300 ] || { echo "not seen: $*"; return; }; done
}
seen grep -q second file; seen grep -q here later; seen [ ! -e gone ]
grep -c . file later`)
	r := e.begin(t)
	require.True(t, r.out.until("looked\n"), "%s", &r.errs)
	put("later", "here\n")
	put("next", "second\n")
	require.NoError(t, os.Rename(dir+"/next", dir+"/file"))
	require.NoError(t, os.Remove(dir+"/gone"))
	assert.Equal(t, result{stdout: "first\ngone\nlooked\nfile:1\nlater:1\n"}, r.wait())
}
