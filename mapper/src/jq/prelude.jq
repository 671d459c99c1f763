# For payloads that are bytes: numbers at a place, most significant byte first (be) or last (le).
def _bytes($at; $n): if length < $at + $n then error("the payload has \(length) bytes, not \($at + $n)") else .[$at:$at + $n] end;
def _number: reduce .[] as $byte (0; . * 256 + $byte);
def _signed($limit): if . >= $limit then . - 2 * $limit else . end;
def u8($at): _bytes($at; 1) | _number;
def i8($at): u8($at) | _signed(128);
def u16be($at): _bytes($at; 2) | _number;
def i16be($at): u16be($at) | _signed(32768);
def u16le($at): _bytes($at; 2) | reverse | _number;
def i16le($at): u16le($at) | _signed(32768);
def u32be($at): _bytes($at; 4) | _number;
def i32be($at): u32be($at) | _signed(2147483648);
def u32le($at): _bytes($at; 4) | reverse | _number;
def i32le($at): u32le($at) | _signed(2147483648);
# IEEE 754: sign, exponent, its bias, fraction, values of the fraction. What is no finite number is null.
def _ieee($sign; $exponent; $bias; $fraction; $of):
  (if $sign == 0 then 1.0 else -1.0 end) as $factor
  | if $exponent == 2 * $bias + 1 then null
    elif $exponent == 0 then $factor * $fraction * pow(2; 1 - $bias) / $of
    else $factor * (1 + $fraction / $of) * pow(2; $exponent - $bias) end;
def _f32: (. / 8388608 | floor) as $head
  | _ieee($head / 256 | floor; $head % 256; 127; . % 8388608; 8388608);
def _f64($high; $low): ($high / 1048576 | floor) as $head
  | _ieee($head / 2048 | floor; $head % 2048; 1023; ($high % 1048576) * 4294967296 + $low; 4503599627370496);
def f32be($at): u32be($at) | _f32;
def f32le($at): u32le($at) | _f32;
def f64be($at): _f64(u32be($at); u32be($at + 4));
def f64le($at): _f64(u32le($at + 4); u32le($at));
