package vole_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write THIRD_PARTY.md anew")

// notice is one licence text and what of a module stands under it.
type notice struct {
	module, version string
	file            string // slash-separated, below the module
	licence         string // SPDX
	text            string
}

// licenceWords recognise a licence by words near the start of its text, by its
// SPDX identifier.
var licenceWords = []struct{ spdx, words string }{
	{"Apache-2.0", "Apache License Version 2.0"},
	{"MIT", "Permission is hereby granted, free of charge"},
	{"CC0-1.0", "Creative Commons CC0 1.0 Universal"},
	{"BSD-3-Clause", "Redistribution and use in source and binary forms"},
	{"patent grant", "Additional IP Rights Grant (Patents)"},
}

// TestThirdParty keeps THIRD_PARTY.md complete: every module that the vole
// binary links, with the licences as they stand beside the sources.
func TestThirdParty(t *testing.T) {
	notices := linkedNotices(t)
	want := thirdParty(t, notices)
	if *update {
		require.NoError(t, os.WriteFile("THIRD_PARTY.md", []byte(want), 0o644))
	}
	got, err := os.ReadFile("THIRD_PARTY.md")
	require.NoError(t, err)
	assert.True(t, string(got) == want, "THIRD_PARTY.md is not what is linked: go test -run TestThirdParty -update . writes it anew")
}

// linkedNotices finds the licence files of all packages that the vole binary
// links, from each package's directory up to its module's.
func linkedNotices(t *testing.T) []notice {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", "-json=Dir,Module", "./cmd/vole").Output()
	require.NoError(t, err)
	files := map[string]notice{} // by path
	covered := map[string]bool{} // by module
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			Dir    string
			Module *struct {
				Path, Version, Dir string
				Main               bool
			}
		}
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if p.Module == nil || p.Module.Main {
			continue
		}
		covered[p.Module.Path] = covered[p.Module.Path] || false
		for dir := p.Dir; ; dir = filepath.Dir(dir) {
			for _, path := range licenceFiles(t, dir) {
				rel, err := filepath.Rel(p.Module.Dir, path)
				require.NoError(t, err)
				text, err := os.ReadFile(path)
				require.NoError(t, err)
				n := notice{p.Module.Path, p.Module.Version, filepath.ToSlash(rel), "", tidy(string(text))}
				n.licence = identify(t, n)
				files[path] = n
				covered[p.Module.Path] = true
			}
			if dir == p.Module.Dir {
				break
			}
		}
	}
	for m, ok := range covered {
		assert.True(t, ok, "%s has no licence file", m)
	}
	return slices.SortedFunc(maps.Values(files), func(a, b notice) int {
		return cmp.Or(strings.Compare(a.module, b.module), strings.Compare(a.file, b.file))
	})
}

func licenceFiles(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var paths []string
	for _, e := range entries {
		stem := strings.ToUpper(strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())))
		if !e.IsDir() && slices.Contains([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "PATENTS"}, stem) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

// identify names the licence whose words come first.
func identify(t *testing.T, n notice) string {
	t.Helper()
	text := strings.Join(strings.Fields(n.text), " ")
	found, at := "", len(text)
	for _, l := range licenceWords {
		if i := strings.Index(text, l.words); i >= 0 && i < at {
			found, at = l.spdx, i
		}
	}
	require.NotEmpty(t, found, "%s: %s is of no licence known here: may vole link it?", n.module, n.file)
	return found
}

// tidy takes blanks off the ends of lines, and empty lines off both ends.
func tidy(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\r\n", "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " \t\f")
	}
	return strings.Trim(strings.Join(lines, "\n"), "\n") + "\n"
}

// thirdParty is the content of THIRD_PARTY.md.
func thirdParty(t *testing.T, notices []notice) string {
	t.Helper()
	ours, err := os.ReadFile("LICENSE")
	require.NoError(t, err)
	apache := apacheTerms(string(ours))
	var b strings.Builder
	b.WriteString(thirdPartyHead)
	b.WriteString("| module | version | licence | its file |\n| --- | --- | --- | --- |\n")
	var texts []string
	under := map[string][]string{}
	for _, n := range notices {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", n.module, n.version, n.licence, n.file)
		if _, seen := under[n.text]; !seen {
			texts = append(texts, n.text)
		}
		under[n.text] = append(under[n.text], "`"+n.module+"` ("+n.file+")")
	}
	checkGo(t, under)
	for _, text := range texts {
		fmt.Fprintf(&b, "\n## %s\n\n", strings.Join(under[text], ", "))
		if apacheTerms(text) == apache {
			b.WriteString("The Apache License 2.0, as it stands in [LICENSE](LICENSE).\n")
			continue
		}
		b.WriteString("```text\n" + text + "```\n")
	}
	return b.String()
}

const thirdPartyHead = `# Third-party software in vole

The vole binary links the modules below, and nothing else that is not vole's own, the Go standard
library or the Go runtime. Those two stand under the licence of ` + "`golang.org/x/sys`" + `. Modules that only
tests use are not in the binary and not here.

Some files cover parts of a module that vole does not link; the texts are whole nevertheless. A line
whose file lies deeper covers the part of the module that is in that directory.

This file is written by ` + "`go test -run TestThirdParty -update .`" + ` and checked by the same test.

`

// apacheTerms are the words of an Apache licence before its end mark, which
// some copies leave out with the appendix behind it.
func apacheTerms(text string) string {
	terms, _, _ := strings.Cut(text, "END OF TERMS AND CONDITIONS")
	return strings.Join(strings.Fields(terms), " ")
}

// checkGo holds the head's word about Go's own licence against the toolchain,
// where that carries it.
func checkGo(t *testing.T, under map[string][]string) {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	require.NoError(t, err)
	raw, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "LICENSE"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Log("this Go has no LICENSE at its root")
		return
	}
	require.NoError(t, err)
	assert.Contains(t, under[tidy(string(raw))], "`golang.org/x/sys` (LICENSE)")
}
