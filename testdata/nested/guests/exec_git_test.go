package guests

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// gitTools are the files of git, for [nested.Options].
func gitTools() []string {
	files, err := nested.Programs(nested.ComponentGit, "bin/git")
	if err != nil {
		return nil // the test that needs them says more
	}
	return slices.Collect(maps.Values(files))
}

// stageGit makes a directory with git as programs that run here and in a guest that has
// this host's files: a script for each of the names by which git starts itself.
func stageGit(t testing.TB) (bin string) {
	t.Helper()
	cmd, err := nested.ProgramCommand(context.Background(), nested.ComponentGit, "bin/git")
	if err != nil {
		t.Skipf("%v", err)
	}
	bin = filepath.Join(t.TempDir(), "bin")
	require.NoError(t, os.Mkdir(bin, 0o755))
	for name, verb := range map[string]string{"git": "", "git-upload-pack": " upload-pack", "git-receive-pack": " receive-pack"} {
		script := "#!/bin/sh\nexec '" + strings.Join(cmd.Args, "' '") + "'" + verb + ` "$@"` + "\n"
		require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755))
	}
	return bin
}

// gitEnv is git's environment: its programs, nobody's settings, and who commits.
func gitEnv(bin string) []string {
	return []string{
		"PATH=" + bin + ":" + programs, "GIT_EXEC_PATH=" + bin, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TEMPLATE_DIR=",
		"GIT_AUTHOR_NAME=vole", "GIT_AUTHOR_EMAIL=vole@example.org", "GIT_COMMITTER_NAME=vole", "GIT_COMMITTER_EMAIL=vole@example.org",
	}
}

// git runs git on this host and returns what it says.
func git(t testing.TB, bin string, stdin []byte, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "git"), args...)
	cmd.Env = append(os.Environ(), gitEnv(bin)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	require.NoError(t, err, "git %s: %s", strings.Join(args, " "), &errs)
	return string(out)
}

// gitTree makes a bare repository of one commit with that many files, 25 a directory.
func gitTree(t testing.TB, bin string, files int) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "large.git")
	git(t, bin, nil, "init", "-q", "--bare", "-b", "main", dir)
	var in bytes.Buffer
	fmt.Fprint(&in, "commit refs/heads/main\ncommitter vole <vole@example.org> 1700000000 +0000\ndata 5\nlarge\n")
	for i := range files {
		text := fmt.Sprintf("file %d\n%s", i, strings.Repeat("and a line of it\n", i%40))
		fmt.Fprintf(&in, "M 100644 inline %s\ndata %d\n%s\n", gitFile(i), len(text), text)
	}
	git(t, bin, in.Bytes(), "-C", dir, "fast-import", "--quiet")
	return dir
}

// gitFile is where gitTree has a file.
func gitFile(i int) string { return fmt.Sprintf("d%02d/e%02d/f%02d", i/1000, i/25%40, i%25) }

// envGitFiles is how many files the trees that git works on have.
const envGitFiles = "VOLE_GIT_FILES"

// envFiles is what envGitFiles says, or usual.
func envFiles(t testing.TB, usual int) int {
	s := os.Getenv(envGitFiles)
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	require.NoError(t, err, envGitFiles)
	return n
}

// saying logs what is written to it as it comes.
type saying struct {
	t   testing.TB
	all bytes.Buffer
}

func (s *saying) Write(p []byte) (int, error) {
	s.t.Log(strings.TrimSpace(string(p)))
	return s.all.Write(p)
}

// execGitScript clones and works in the clone. What it says last is the new commit.
const execGitScript = `
say() { read now idle </proc/uptime; echo "$now $*" >&2; }
say clone
git clone -q file://"$1" "$2"
cd "$2"
say status
[ -z "$(git status --porcelain)" ] || { echo the clone is not clean; git status --porcelain | head; exit 1; }
say status again
git status --porcelain
echo changed >>$3
rm $4
mkdir new
echo new >new/file
say change
[ "$(git status --porcelain | tr '\n' ';')" = " M $3; D $4;?? new/;" ] || { git status --porcelain; exit 1; }
git add -A
git commit -q -m 'made in the guest'
say check
git status --porcelain
git fsck --full --strict 2>&1
say end
git rev-parse HEAD
`

// TestExecGit: git clones a large tree onto a share of `vole exec --rw`, finds it clean,
// commits, and has an object store without a fault; this host finds the same.
func TestExecGit(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Parallel()
	tools(t)
	bin := stageGit(t)
	files := envFiles(t, 2_000)
	large := gitTree(t, bin, files)
	work := t.TempDir()
	clone := filepath.Join(work, "clone")
	e := execVole(t, 2, []string{"--rw", work, "-c", "2", "-m", "1G"}, "sh", "-e", "-c", execGitScript, "sh", large, clone, gitFile(7), gitFile(files-1))
	e.within(t, 30*time.Minute)
	e.Env = append(e.Env, gitEnv(bin)...)
	said := saying{t: t}
	e.Stderr = &said
	r := e.result(t)
	require.Equal(t, 0, r.code, "%s%s", r.stdout, &said.all)

	head := git(t, bin, nil, "-C", clone, "rev-parse", "HEAD")
	assert.Equal(t, head, r.stdout, "the guest's last word is its commit, and it said nothing else")
	assert.Empty(t, git(t, bin, nil, "-C", clone, "status", "--porcelain"))
	assert.Empty(t, git(t, bin, nil, "-C", clone, "fsck", "--full", "--strict"))
	assert.Equal(t, "made in the guest\nlarge\n", git(t, bin, nil, "-C", clone, "log", "--format=%s"))
	assert.Equal(t, fmt.Sprintf("M\t%s\nD\t%s\nA\tnew/file\n", gitFile(7), gitFile(files-1)), git(t, bin, nil, "-C", clone, "diff", "--name-status", "HEAD^"))
	assert.Equal(t, files, strings.Count(git(t, bin, nil, "-C", clone, "ls-files"), "\n"), "one less, one more")
	// Without its index git has to read every file.
	require.NoError(t, os.Remove(filepath.Join(clone, ".git", "index")))
	git(t, bin, nil, "-C", clone, "reset", "-q")
	assert.Empty(t, git(t, bin, nil, "-C", clone, "status", "--porcelain"))
}
