package wire

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	sent := Command{ID: 7, Path: "sh", Args: []Text{"sh", "-c", "echo \xff"}, Files: [3]File{FileNull, FileStream, FileTTY}, Size: Size{24, 80}}
	require.NoError(t, w.Write(KindStart, &sent))
	require.NoError(t, w.Write(200, "unknown"))
	require.NoError(t, w.Write(KindPing, Ping{Seq: 1}))

	f, err := ReadFrame(&b)
	require.NoError(t, err)
	assert.Equal(t, KindStart, f.Kind)
	var got Command
	require.NoError(t, f.Decode(&got))
	assert.Equal(t, sent.ID, got.ID)
	assert.True(t, got.TTY())
	assert.Equal(t, sent.Args, got.Args)
	assert.Equal(t, Size{24, 80}, got.Size)

	f, err = ReadFrame(&b)
	require.NoError(t, err)
	assert.Equal(t, Kind(200), f.Kind)
	f, err = ReadFrame(&b)
	require.NoError(t, err)
	require.ErrorIs(t, f.Decode(&[]int{}), ErrFrame)
	_, err = ReadFrame(&b)
	assert.Equal(t, io.EOF, err)
}

// What an older host does not know is there only where there is something to say.
func TestLost(t *testing.T) {
	text, err := json.Marshal(Exited{ID: 1})
	require.NoError(t, err)
	assert.Equal(t, `{"id":1,"code":0}`, string(text))
	text, err = json.Marshal(Exited{ID: 1, Lost: &Lost{2, "none"}})
	require.NoError(t, err)
	assert.Equal(t, `{"id":1,"code":0,"lost":{"stream":2,"what":"none"}}`, string(text))
	text, err = json.Marshal(Exited{ID: 1, LostInput: &Lost{0, "none"}})
	require.NoError(t, err)
	assert.Equal(t, `{"id":1,"code":0,"lost-input":{"stream":0,"what":"none"}}`, string(text))
}

func TestBadFrames(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"cut header": {"\x01\x00", io.ErrUnexpectedEOF},
		"cut body":   {"\x04\x00\x00\x00\x01{}", io.ErrUnexpectedEOF},
		"no body":    {"\x04\x00\x00\x00\x01", io.ErrUnexpectedEOF},
		"too long":   {"\xff\xff\xff\xff\x01", ErrFrame},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadFrame(strings.NewReader(c.in))
			assert.ErrorIs(t, err, c.want)
		})
	}
	assert.ErrorIs(t, NewWriter(io.Discard).Write(KindLog, Log{strings.Repeat("x", MaxFrame)}), ErrFrame)
}

func TestPreface(t *testing.T) {
	secret := NewSecret()
	for name, c := range map[string]struct {
		p  Preface
		ok bool
	}{
		"control":              {Preface{0, Control}, true},
		"stdin":                {Preface{1 << 31, 0}, true},
		"stderr":               {Preface{3, 2}, true},
		"terminal":             {Preface{3, Terminal}, true},
		"no such stream":       {Preface{3, 4}, false},
		"control of a command": {Preface{3, Control}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := c.p.Append(nil, secret)
			require.Len(t, b, PrefaceSize)
			r := bytes.NewReader(append(b, "more"...))
			got, err := ReadPreface(r, secret)
			assert.Equal(t, len("more"), r.Len())
			if !c.ok {
				assert.ErrorIs(t, err, ErrFrame)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.p, got)
		})
	}
	for name, c := range map[string]struct {
		begin string // in place of an own
		want  error
	}{
		"its own":         {"", nil},
		"another's":       {"GET / HTTP/1.1\r\n", ErrFrame},
		"another version": {"vole\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", ErrFrame},
	} {
		t.Run(name, func(t *testing.T) {
			b := Preface{Command: 1}.Append(nil, secret)
			copy(b, c.begin)
			_, err := ReadPreface(bytes.NewReader(b), secret)
			require.ErrorIs(t, err, c.want)
			// Without the secret nobody hears what was wrong with the rest.
			for i := range SecretSize {
				b := bytes.Clone(b)
				b[PrefaceSize-1-i] ^= 0x80
				p, err := ReadPreface(bytes.NewReader(b), secret)
				require.Equal(t, ErrSecret, err)
				require.Zero(t, p)
			}
			_, err = ReadPreface(bytes.NewReader(b[:PrefaceSize-1]), secret)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		})
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x04{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			frame, err := ReadFrame(r)
			if err != nil {
				break
			}
			for _, v := range []any{&Hello{}, &Exited{}, &Command{}} {
				_ = frame.Decode(v)
			}
		}
		_, _ = ReadPreface(bytes.NewReader(b), Secret{})
	})
}
