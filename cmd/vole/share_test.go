package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestBadShares: each is refused with one line and exit code 2.
func TestBadShares(t *testing.T) {
	kernel := file(t, "kernel", payload(powerOff()))
	initrd, dir := file(t, "initrd", []byte("070701")), t.TempDir()
	for name, tc := range map[string]struct {
		shares []string
		want   []string
	}{
		"no tag":             {[]string{dir}, []string{dir, "no tag"}},
		"an empty tag":       {[]string{dir + ":"}, []string{"empty tag"}},
		"a long tag":         {[]string{dir + ":" + strings.Repeat("t", 37)}, []string{"37 bytes", "36"}},
		"a tag with an end":  {[]string{dir + ":a\tb"}, []string{"can't be printed"}},
		"a tag twice":        {[]string{dir + ":t", dir + ":t"}, []string{"two shares", `"t"`}},
		"no directory":       {[]string{":t"}, []string{"names no directory"}},
		"missing":            {[]string{"/nowhere/dir:t"}, []string{"/nowhere/dir"}},
		"a file":             {[]string{kernel + ":t"}, []string{kernel}},
		"a device":           {[]string{"/dev/null:t"}, []string{"/dev/null"}},
		"an unknown option":  {[]string{dir + ":t,rw"}, []string{`"rw"`}},
		"an option twice":    {[]string{dir + ":t,ro,ro"}, []string{"ro is given more than once"}},
		"an unknown cache":   {[]string{dir + ":t,cache=fast"}, []string{"cache", `"fast"`}},
		"an unknown owner":   {[]string{dir + ":t,owner=me"}, []string{"owner", `"me"`}},
		"mounted by run":     {[]string{dir + ":t,at=/mnt"}, []string{dir, "at is for exec"}},
		"mounted on what":    {[]string{dir + ":t,at=mnt"}, []string{`"mnt"`, "absolute"}},
		"mounted on all":     {[]string{dir + ":t,at=/tmp/.."}, []string{"absolute path below the root"}},
		"the second of two":  {[]string{dir + ":a", "/nowhere/dir:b"}, []string{"/nowhere/dir"}},
		"a path of 5000":     {[]string{"/" + strings.Repeat("d", 5000) + ":t"}, []string{"name too long"}},
		"a loop of links":    {[]string{loop(t) + ":t"}, []string{"loop"}},
		"the host's /proc":   {[]string{"/proc:t"}, []string{"/proc"}},
		"unreadable by name": {[]string{"\xff:t"}, []string{`\xff`}},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"run", "-k", kernel, "-i", initrd}
			for _, s := range tc.shares {
				args = append(args, "--share", s)
			}
			r := vole(t, args...)
			assert.Equal(t, codeUsage, r.code, r.stderr)
			assert.Empty(t, r.stdout)
			assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
			assert.Contains(t, r.stderr, "--share", "the flag is named")
			for _, want := range tc.want {
				assert.Contains(t, strings.ReplaceAll(r.stderr, "too many levels of symbolic links", "loop"), want)
			}
		})
	}
}

// loop is a link to itself.
func loop(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "loop")
	require.NoError(t, os.Symlink(path, path))
	return path
}
