package vole_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pages are the documents whose claims are checked here. The man page has a
// test of its own beside the commands that it is made from.
func pages(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	all := map[string]string{}
	for _, name := range append(names, "README.md") {
		all[name] = read(t, name)
	}
	return all
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(b)
}

// TestReadmeShowsTheExample compares the README's Go code with the body of
// package vmm's Example, which is compiled.
func TestReadmeShowsTheExample(t *testing.T) {
	const source = "vmm/example_test.go"
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, source, nil, parser.SkipObjectResolution|parser.ParseComments)
	require.NoError(t, err)
	text := read(t, source)
	var want string
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == "Example" {
			body := text[files.Position(f.Body.Lbrace).Offset+1 : files.Position(f.Body.Rbrace).Offset]
			want = strings.ReplaceAll(strings.TrimPrefix(body, "\n"), "\n\t", "\n")
			want = strings.TrimPrefix(want, "\t")
		}
	}
	require.NotEmpty(t, want, "%s has no Example", source)
	_, code, ok := strings.Cut(read(t, "README.md"), "```go\n")
	require.True(t, ok, "the README has no Go code")
	code, _, _ = strings.Cut(code, "```")
	assert.Equal(t, want, code)
}

// TestExitCodes compares the tables of exit codes with the man page, which is made
// from the commands.
func TestExitCodes(t *testing.T) {
	numbers := regexp.MustCompile(`\b\d+\b`)
	for command, page := range map[string]string{"run": "README.md", "exec": "docs/exec.md"} {
		t.Run(command, func(t *testing.T) {
			var want, got []string
			_, section, ok := strings.Cut(read(t, "docs/vole.1"), ".SS vole "+command+"\n")
			require.True(t, ok)
			_, block, ok := strings.Cut(section, "Exit codes:\n.nf\n")
			require.True(t, ok)
			block, _, _ = strings.Cut(block, ".fi")
			for line := range strings.Lines(block) {
				want = append(want, numbers.FindAllString(line[:min(len(line), 10)], -1)...)
			}
			_, table, ok := strings.Cut(read(t, page), "## Exit codes")
			require.True(t, ok)
			table, _, _ = strings.Cut(table, "\n## ")
			for line := range strings.Lines(table) {
				if cells := strings.Split(line, "|"); len(cells) > 2 {
					got = append(got, numbers.FindAllString(cells[1], -1)...)
				}
			}
			slices.Sort(want)
			slices.Sort(got)
			assert.NotEmpty(t, want)
			assert.Equal(t, want, got)
		})
	}
}

// TestPagesNameWhatIsThere looks up what the documents name: files that they
// link to, make's targets, vole's flags and the environment's variables.
func TestPagesNameWhatIsThere(t *testing.T) {
	makefile, man, sources := read(t, "Makefile"), strings.ReplaceAll(read(t, "docs/vole.1"), `\-`, "-"), sourceText(t)
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	target := regexp.MustCompile("(?m)(?:`|^)make ([a-z]+)(?:[^`\\n]*`|\\s*(?:#.*)?$)")
	flag := regexp.MustCompile("(?:^|[\\s`])(--[a-z][a-z-]+)")
	variable := regexp.MustCompile(`\bVOLE_[A-Z_]+\b`)
	for name, text := range pages(t) {
		t.Run(name, func(t *testing.T) {
			for _, m := range link.FindAllStringSubmatch(text, -1) {
				assert.FileExists(t, filepath.Join(filepath.Dir(name), m[1]))
			}
			for _, m := range target.FindAllStringSubmatch(text, -1) {
				assert.Contains(t, makefile, "\n"+m[1]+":", "make %s", m[1])
			}
			flags := flag.FindAllStringSubmatch(text, -1)
			if name != "README.md" {
				flags = nil // may be another program's
			}
			for _, m := range flags {
				assert.Regexp(t, regexp.QuoteMeta(m[1])+`\b`, man)
			}
			for _, v := range variable.FindAllString(text, -1) {
				assert.Contains(t, sources, v)
			}
		})
	}
}

// sourceText is all of the Go code and the Makefile in one string.
func sourceText(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".go") || path == "Makefile" {
			b.WriteString(read(t, path))
		}
		return nil
	})
	require.NoError(t, err)
	return b.String()
}
