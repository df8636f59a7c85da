package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestExecBadInput: one line on stderr, exit code 125, and nothing is created.
func TestExecBadInput(t *testing.T) {
	text := file(t, "text", []byte(strings.Repeat("not a kernel\n", 1000)))
	kernel := file(t, "kernel", payload(powerOff()))
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"no command":            {[]string{}, []string{"no command is given"}},
		"an empty command":      {[]string{"--", ""}, []string{"no command is given"}},
		"unknown flag":          {[]string{"--frob", "--", "true"}, []string{"--frob"}},
		"a flag of run":         {[]string{"-k", kernel, "-i", text, "--", "true"}, []string{"--initrd", "has its own"}},
		"on reset":              {[]string{"-k", kernel, "--on-reset", "restart", "--", "true"}, []string{"--on-reset"}},
		"console":               {[]string{"-k", kernel, "--console", "c", "--", "true"}, []string{"--console-log"}},
		"console device":        {[]string{"-k", kernel, "--console-device", "virtio", "--", "true"}, []string{"--console-device"}},
		"no such kernel":        {[]string{"-k", "/nowhere/vmlinuz", "--", "true"}, []string{"/nowhere/vmlinuz", "no such file"}},
		"kernel is text":        {[]string{"-k", text, "--", "true"}, []string{text, "not a Linux kernel"}},
		"memory":                {[]string{"-k", kernel, "-m", "much", "--", "true"}, []string{"--memory", `"much"`}},
		"memory twice":          {[]string{"-m", "1G", "-m", "2G", "--", "true"}, []string{"--memory: given more than once"}},
		"rw, nowhere":           {[]string{"--rw", "/no/where", "--", "true"}, []string{"--rw", "/no/where", "no such file or directory"}},
		"rw, a file":            {[]string{"--rw", text, "--", "true"}, []string{"--rw", text, "not a directory"}},
		"rw, nothing":           {[]string{"--rw", "", "--", "true"}, []string{"--rw"}},
		"rw, the kernel's":      {[]string{"--rw", "/proc/self/fd", "--", "true"}, []string{"--rw", "the guest has a /proc of its own"}},
		"rw, devices":           {[]string{"--rw", "/dev", "--", "true"}, []string{"--rw", "/dev: the guest has a /dev of its own"}},
		"module without a name": {[]string{"-k", kernel, "--module", "", "--", "true"}, []string{"--module", "the value is empty"}},
		"boot timeout, none":    {[]string{"--boot-timeout", "0s", "--", "true"}, []string{"--boot-timeout", `"0s" is no time at all`, "without it there are 2m0s"}},
		"share, tag of vole's":  {[]string{"-k", kernel, "--share", "/srv:vole-root", "--", "true"}, []string{"--share: the tag vole-root is vole's own"}},
		"env without a name":    {[]string{"--env", "=x", "--", "true"}, []string{"--env", `"=x" is not a variable`}},
		"env without a value":   {[]string{"--env", "X", "--", "true"}, []string{"--env", `"X" is not a variable`}},
		"cwd, nowhere":          {[]string{"-k", kernel, "--cwd", "/no/where", "--", "true"}, []string{"--cwd", "/no/where", "no such file"}},
		"cwd, a file":           {[]string{"-k", kernel, "--cwd", text, "--", "true"}, []string{"--cwd", text, "not a directory"}},
		"cwd twice":             {[]string{"--cwd", "/", "--cwd", "/", "--", "true"}, []string{"--cwd: given more than once"}},
		"user, nobody's":        {[]string{"-k", kernel, "--user", "no-such-user", "--", "true"}, []string{"--user", `"no-such-user" is no user`}},
		"user, half a number":   {[]string{"-k", kernel, "--user", "1:x", "--", "true"}, []string{"--user", `"1:x" is not UID:GID`}},
		"user, too large":       {[]string{"-k", kernel, "--user", "4294967296", "--", "true"}, []string{"--user"}},
		"user, nobody at all":   {[]string{"-k", kernel, "--user", "4294967295", "--", "true"}, []string{"--user"}},
		"hang":                  {[]string{"--hang", "5", "--", "true"}, []string{"--hang", `"5"`}},
		"hang, negative":        {[]string{"--hang", "-5s", "--", "true"}, []string{"--hang"}},
		"boot timeout":          {[]string{"--boot-timeout", "soon", "--", "true"}, []string{"--boot-timeout", `"soon"`}},
		"module without a home": {[]string{"-k", kernel, "--module", "ext4", "--", "true"}, []string{"module"}},
		"share":                 {[]string{"--share", "nonsense", "--", "true"}, []string{"--share"}},
		"publish to nobody":     {[]string{"-k", kernel, "--publish", "80:80", "--", "true"}, []string{"--publish", "--net user"}},
		"console log":           {[]string{"-k", kernel, "--console-log", "/no/where/log", "--", "true"}, []string{"--console-log", "/no/where/log"}},
		"report":                {[]string{"-k", kernel, "--report", "/no/where/r.json", "--", "true"}, []string{"--report", "/no/where/r.json"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			args := []string{"exec"}
			has := func(flag string) bool { return strings.Contains(strings.Join(tc.args, " "), flag) }
			if !has("--console-log") {
				args = append(args, "--console-log", filepath.Join(dir, "console"))
			}
			if !has("--report") {
				args = append(args, "--report", filepath.Join(dir, "report.json"))
			}
			cmd := command(t, append(args, tc.args...)...)
			cmd.Env = append(cmd.Env, "VOLE_CACHE="+filepath.Join(dir, "cache"), "TMPDIR="+dir)
			r := finish(t, cmd)
			assert.Equal(t, codeExecHost, r.code, r.stderr)
			assert.Empty(t, r.stdout)
			assert.True(t, strings.HasPrefix(r.stderr, "vole: exec: "), r.stderr)
			assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
			for _, want := range tc.want {
				assert.Contains(t, r.stderr, want)
			}
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			assert.Empty(t, entries)
		})
	}
}
