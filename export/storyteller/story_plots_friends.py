"""Plots about two friends: what is lost, shared, given, out of reach, broken, or won."""

from __future__ import annotations

from story_beats import plot

LOST = plot(
    "lost",
    """
@open

{hero:He} had {+toy:a} [and took it everywhere|that {hero:he} loved very much|and never left it at home].
{hero:His} [favorite|dearest] thing in the [whole|wide] world was {+toy:a}.
For {hero:his} birthday, {hero:he} had been given {+toy:a}, and {hero:he} [loved it|loved it dearly].
Wherever {hero:he} went, {hero:he} took {+toy:a} [along|with {hero:him}].
{hero:His} {+elder} had made {+toy:a} for {hero:him}, and nothing was [dearer|more precious] to {hero:him}.

<one_day>, {hero} <went> to {+place} [to play|with the {toy} under one arm|right after breakfast].
<one_day>, {hero} played with the {toy} {+place:at} [all morning|for a long time|until the sun was high].
<one_day>, {hero} and the {toy} set off for {+place}.

@air

But when [it was time to go home|it grew late|{hero} wanted to go home], the {toy} was [gone|not there|nowhere to be seen].
But when {hero:he} [turned around|looked up|stopped to rest], the {toy} was [gone|not there].
Then {hero:he} [stopped|stood still|gasped]. // The {toy:full} was [gone|missing|not there any more]!
[A butterfly flew by|A row of ducks marched by|A funny cloud floated past], and when {hero} looked back, the {toy} was
    [gone|missing].

{hero} <was_sad>, and a [big|fat|warm] tear rolled down {hero:his} cheek.
"Oh no! Where is my {toy}?" <called> {hero}.
{hero} <was_sad> [and sat down on the ground|and did not know what to do].
"My {toy}! I have lost my {toy}!" <called> {hero}.

?
{hero:He} looked {+spot2}, but [there was only|{hero:he} found only|there was nothing but] [an old shoe|a sleepy snail
    |dust and leaves|a ladybug|a rusty spoon].
{hero:He} looked {+spot2}, but the {toy} was not there.

<just_then>, {hero:his} friend {+friend} came [by|along|up the path|around the corner].
{hero:His} friend {+friend} heard {hero:him} [cry|sigh|call out] and came [running|at once].
{+friend}, who [was a good friend|lived nearby|was on the way home], saw {hero:him} and [stopped|came over].

"<problem>, {hero}?" asked {friend}<kindly>. // "I lost my {toy}," <said> {hero}<sadly>.
"<problem>?" asked {friend}<kindly>. // "My {toy:full} is gone, and I looked [everywhere|all over|high and low]," <said> {hero}.

"[Don't cry|Don't worry|Cheer up]. [Two can look better than one|We will find it|I will help you]," said {friend}<kindly>.
"Then we will look for it [together|side by side]," said {friend}<kindly>.
"[Four eyes see more than two|I am good at finding things|It cannot be far]," said {friend}<kindly>.

[Together|So] {p} and {q} looked [high and low|behind every tree|left and right|up and down the path].
{p} looked on the left [side|side of the path], and {q} looked on the right.
{p} looked near [the path|the gate|the trees], and {q} looked [far away|farther off|all around].
{p} and {q} [walked|went|crept] back [step by step|slowly] and looked [at every stone|under every leaf|everywhere].

<at_last>, {friend} looked {+spot}, and there [was|lay] the {toy}!
<soon>, {friend} [bent down|knelt down|stopped]. // There, {+spot}, [was|lay|sat] the {toy:full}.
"Look! What is that?" <called> {friend}. // The {toy} was lying {+spot}[, safe and sound|].

{friend} [picked it up|brushed off the dust|wiped it clean] and gave [it|the {toy}] [back to|to] {hero!}.
[With a smile|Very gently|Proudly], {friend} handed the {toy} [back to|to] {hero!}.
{friend} [ran back|came back|laughed] and gave the {toy:full} to {hero!}.

"Thank you, {friend!}!" [said|cried|shouted] {hero}, and gave {friend:him} a <hug>.
"You found it! You are the best, {friend!}," said {hero}<gladly>.
{hero} [hugged the {toy}|held the {toy} tight], and then {hero:he} hugged {friend!}.

?
They played with the {toy} until [supper|the sun went down|it was time to go home].
So {hero} let {friend} play with the {toy} [first|all afternoon|as long as {friend:he} liked].
That day, {hero} learned that [lost things are easier to find with a friend|it is good to ask for help].

<forever>, whenever {hero} [looked at|played with|picked up] the {toy}, {hero:he} thought of {friend!}.
<evening>, {hero} fell asleep with the {toy} [by {hero:his} pillow|in {hero:his} arms|beside {hero:him}].
{p} and {q} went home <side> <sky>, and this time nobody [lost|dropped|forgot] the {toy}.
<forever>, {p} and {q} [were|stayed] [the best of friends|best friends|friends].

@the_end
""",
)

SHARE = plot(
    "share",
    """
@open

@likes

<one_day>, {hero:his} {+elder} [gave|handed] {hero:him} {+treat:a} for [the way|later|lunch].
<one_day>, {hero:his} {+elder} put {+treat:a} in {hero:his} [bag|pocket|little basket].
<one_day>, {hero:he} got {+treat:a} from {hero:his} {+elder}, and it smelled [so good|wonderful].

{hero} took it to {+place} and [sat down|looked for a place to sit] <seat>.
{hero} carried it to {+place}, where {hero:he} [wanted|hoped] to eat it <seat>.
With the {treat} [in {hero:his} pocket|safe in {hero:his} bag], {hero} <went> to {+place}.

@air

There {hero:he} [saw|met|found] {hero:his} friend {+friend}, who <looked_sad>.
Not far away sat {hero:his} friend {+friend}, all alone.
<soon>, {hero:his} friend {+friend} came by and <looked_sad>.

"<problem>, {friend!}?" asked {hero}<kindly>. //
    "I [forgot my lunch|dropped my lunch in the mud|have had nothing to eat all day|am so hungry]," <said> {friend}<sadly>.
"<problem>?" asked {hero}<kindly>. //
    "[A goat ate my lunch|My lunch fell into the water|I left my lunch at home], and now I am hungry," <said> {friend}.

{hero} looked at the {treat}. // [It was not very big|There was only one|It smelled so good], and {hero:he} was hungry too.
{hero} [held|thought about] the {treat}, which [was so small|smelled so good|looked so good].
There was only one {treat}, and {hero} [wanted it very much|was hungry too|had waited for it all morning].

But then {hero} [thought of|remembered|knew] how it feels to be [hungry|hungry and alone|left out].
But {hero} [remembered|knew|thought of] what {hero:his} {elder} [always|often] said: "[Good things taste better when you share them
    |Half is enough when you have a friend|A treat that you share is twice as sweet]."
But how can a {treat} taste good when [a friend|someone like {friend!}] is [sad|hungry|left out]?

So {hero} broke the {treat} in two and gave [half|one half|the bigger half|the bigger piece] to {friend!}.
So {hero} cut the {treat} in two and gave the [bigger|first|best] piece to {friend!}.
[With a smile|Then|Very carefully], {hero} broke the {treat} into two pieces. //
    One piece {hero:he} kept, and the other {hero:he} gave to {friend!}.

"[Thank you|Oh, thank you], {hero!}! You are so kind," said {friend}<gladly>.
{friend} [ate every crumb|took a big bite] and smiled at {hero!}.
"This is the best {treat} I have ever [had|eaten]," said {friend}<gladly>.

{p} and {q} sat <seat>, and [the {treat}|every bite|half a {treat}] tasted [better|sweeter] than ever before.
They ate [slowly|together|side by side], and soon {p} and {q} were laughing about [everything|nothing at all|the clouds].
It was [funny|strange|odd], but half of the {treat} made {hero} [happier|fuller|gladder] than a whole one [would have|ever had].

?
The next day, {friend} came with {+trinket:a} and gave it to {hero!}.
The next day, {friend} was waiting {place:at}. //
    "[This is for you|Now it is my turn|I have something for you]," said {friend}, and gave {+trinket:a} to {hero!}.

@end_pair

@the_end
""",
)

GIFT = plot(
    "gift",
    """
@open

{hero:His} [best|dearest] friend was {+friend}[, who lived next door|, who always made {hero:him} laugh|].
{hero:He} had a [good|dear|best] friend named {+friend}.

[It was almost|Soon it would be|The next day was] {friend}'s birthday, and {hero} had no [present|gift] yet.
<one_day>, {hero:he} remembered that it was almost {friend}'s birthday.
{friend}'s birthday was only [one day|two days] away, and {hero} [wanted to give|hoped to find] something special.

{hero} [thought and thought|thought very hard|walked up and down|scratched {hero:his} head], but {hero:he} had no [money|coins|time]
    and no [plan|idea].
"What can I give to {friend!}?" {hero:he} [wondered|asked|said].
{hero:He} [looked in every drawer|looked in the shop window|counted {hero:his} coins], but there was nothing [good|right]
    for {friend!}.

"[The best gifts are made by hand|A gift made with love is the best gift|Why don't you make something yourself]," said
    {hero:his} {+elder}<kindly>.
Then {hero:his} {+elder} had [an idea|a good idea]. // "[You could make something|Why not make a present|What about making a
    present], {hero!}?" {elder:he} [asked|said]<kindly>.

So {hero} sat at the table [all evening|until supper|for a long time] and made {+gift:a}.
So {hero} [got to work|rolled up {hero:his} sleeves|cleared the table] and [slowly|carefully|step by step] made {+gift:a}.
{hero} [worked|worked and hummed] [all evening|until it was dark|for hours], and when {hero:he} was done, there was
    {+gift:a} on the table.

?
[It was a little crooked|One corner was loose|One side was longer], but {hero} [liked it that way|had made it with love|did not give up].
{hero:His} {elder} helped with the [last|hardest|trickiest] part, and {hero} did [the rest|all the rest|everything else].
Now and then {hero} stopped and [smiled|yawned|hummed|sneezed] and looked at it from [far away|all sides|above].

The next day, {hero} <went> to {friend}'s house with the {gift} [behind {hero:his} back|in a paper bag|under {hero:his} coat].
On {friend}'s birthday, {hero} wrapped the {gift} in [red|blue|yellow|green] paper and <went> to the party.
When the big day came, {hero} put on a [clean|warm|blue|green] [shirt|sweater] and took the {gift} to {friend}'s house.

?
<heart>. // [Would {friend} like it|What if {friend} did not like it]?
The others had brought [big|shiny] presents, and {hero} felt [a little shy|very small].
There was [cake|music|a big cake|lemonade], there were [balloons|games|lights|paper chains] [in every room|all over the house], and
    {hero} [felt shy|waited|looked for {friend}].

"Happy birthday," said {hero}, and gave the {gift:full} to {friend!}.
{hero} took a deep breath and gave the {gift} to {friend!}.
When it was {hero}'s turn, {hero:he} handed the {gift} to {friend!}.

{friend} [looked|stared] at it [for a moment|for a long time]. // Then {friend:he} [smiled|began to smile|laughed with joy].
{friend}'s eyes [grew wide|shone|lit up].
{friend} [turned it around|held it up|touched it gently] and [smiled|smiled and smiled].

"You made [this|it] for me? It is the [best|dearest|finest] [gift|present] [of all|in the world]," said {friend}, and hugged {hero!}.
"It is [beautiful|perfect|wonderful], {hero!}! I will [keep it always|never lose it]," said {friend}<gladly>.
"Nobody has ever made me {gift:a} before," said {friend}, and gave {hero} a <hug>.

?
Now {hero} <was_glad>, [and all the worry was gone|and {hero:his} cheeks turned pink|and the cake tasted twice as good].
So {hero} [learned|saw|understood] that a gift does not have to be [big|new|shiny|from a shop] to be [loved|the best|the dearest].

To this day, {friend} keeps the {gift} [by the bed|on the best shelf|close], and every [morning|night] {friend:he} thinks of {hero!}.
And if you visit {friend}, you [will|can] see the {gift:full} [by the window|on the best shelf|above the bed].
@end_friends

@the_end
""",
)

STUCK = plot(
    "stuck",
    """
@open_pair

@to_place

@air

@gives

{p} had brought {+toy2:a}[, and they took turns with it|, and {q} could not wait to try it].
{p} and {q} [played with|took turns with] {+toy2:a} that [was a present|was brand new|had come in the mail].

<suddenly> the wind [blew hard|took hold of the {toy2}], and the {toy2} [landed|ended up] {+high}.
{p} threw the {toy2} [too high|up into the air], and it [got stuck|came down] {+high}.
<suddenly> a [big bird|cheeky crow|magpie] took the {toy2} and dropped it {+high}.

"Oh no! Now it is gone," said {p}<sadly>.
"How will we get it down?" asked {p}<sadly>.
{p} and {q} looked up. // The {toy2} was so [high|far] up that it looked [tiny|like a dot].

First {hero} [jumped|hopped|stretched] as high as {hero:he} could, but it was [no use|not high enough|no good].
First {hero} threw [a stick|a pine cone|an old shoe] at it, but [it missed|nothing moved].
First {hero} called to the {toy2}, but it did not [listen|come down].

Then {friend} [tried to climb|looked for a ladder|pulled and shook], but [that did not work|it was no good].
Then {friend} [found a long pole|got a broom], but it was [too short|not long enough].

"[I can't do it alone|Alone we are too small|Maybe we must do it together]," said {hero}. //
    "[Let's try together|Then let's do it together|Two are taller than one]," <said> {friend}<kindly>.
{p} and {q} were about to [give up|go home], [when|but then] {x} had [an idea|a thought]. // "[Stand|Climb] on my
    [shoulders|back]," said {x} to {y!}.

So {p} held [very still|the pole|on tight], and {q} [climbed up|reached up] [slowly|bit by bit|inch by inch].
{p} stood [below|like a wall], and {q} [climbed|reached] [higher and higher|up and up].
{p} and {q} [wobbled|giggled|wobbled and giggled], but they did not [fall|let go].

<at_last>, {friend} [touched|reached] the {toy2}, and down it came[ with a bump|].
One little push, and the {toy2} [came down|fell right into {hero}'s arms|landed softly on the grass].
[Plop|Bump|Swish]! // The {toy2:full} [came down|was back on the ground].

{friend} picked it up and gave the {toy2} to {hero!}.
"We did it!" <called> {p}, and {q} danced [in a circle|around the {toy2}].
"Hooray!" <called> {p} and {q} [at the same time|so loudly that the birds flew up].

?
What {hero} could not do alone, {hero} and {friend} could do together.
{p} and {q} were [proud|very proud], because they had done it together.
"[You are a good ladder|We make a good team|Together we are tall], {p!}," said {q}<gladly>.

@end_pair

@the_end
""",
)

TRUTH = plot(
    "truth",
    """
@open

@likes

{hero:His} {+elder} had {+fragile:a}, and [it was very old|it was a gift from long ago|there was no other like it].
On the [top shelf|kitchen shelf|windowsill] stood {+fragile:a} that [belonged to|was dear to] {hero:his} {+elder}.

<one_day>, {hero} [danced|ran|hopped|twirled] through the [kitchen|room|hall], and [crash|bang|oh no]! //
    The {fragile} [fell|fell down] and [broke|broke into three pieces|broke in two].
<one_day>, {hero} reached for [a cookie|a book|the jam] and [bumped|pushed] the {fragile}. // It [fell|fell down|tipped over] and [broke|broke in two|broke into many pieces].
<one_day>, {hero} was playing with {+toy:a} [in the kitchen|in the hall], and it hit the {fragile}. //
    The {fragile} broke [in two|into three pieces].

?
<heart>. // [Nobody|No one] had [seen|heard] it, [but {hero} knew|not even the cat|or so {hero:he} thought].
{hero} stood [quite still|very still|there with an open mouth]. // [The house was quiet|Nobody had heard it|No one was there|Only the clock
    ticked].
"[Oh no|Oh dear]! What have I done?" [whispered|said|cried] {hero}[ and turned pale| and did not dare to move|].

{hero:He} [quickly hid|hid] the pieces in {+box:a} and [ran outside|went to {hero:his} room|sat on the steps].
{hero:He} put the pieces in {+box:a} and [closed it|told no one|tiptoed away].

?
But {hero} could not [eat {hero:his} supper|play|smile any more], and the secret felt
    [heavy as a stone|like a stone in {hero:his} pocket|bigger and bigger].
{hero} tried to {hobby}, but {hero:he} [could not stop thinking about|kept thinking of|saw nothing but] the {fragile}.

Then {hero:his} friend {+friend} came over and [saw {hero:his} face|sat down next to {hero:him}]. //
    "<problem>?" asked {friend}<kindly>.
Then {hero:his} friend {+friend} [knocked on the door|came to play]. // "You look [pale|sad|worried], {hero!}," said {friend}.

{hero} told {friend} everything. //
    "[Tell the truth|Say it right away], and [you will feel lighter|it will be all right]," said {friend}<kindly>.
"I broke the {fragile}, and I hid the pieces," <said> {hero}<sadly>. //
    "[I would tell the truth|It is best to tell|Be brave and tell]," said {friend}<kindly>.

?
"Will you come with me, {friend!}?" asked {hero}. // "[Of course|Yes|All the way]," <said> {friend}, and took {hero} by the arm.
"But what if {elder:he} is angry, {friend!}?" asked {hero}. // "[Even then|Anger passes|I will stand next to you]," <said> {friend}<kindly>.

So {hero} [went|walked slowly] to {hero:his} {elder}, opened the {box!} and [said|whispered], "I [did it|broke it|broke the {fragile}]. I am [sorry|so sorry]."
{hero} took the {box!} to {hero:his} {elder}. // "I broke the {fragile}, and I am [sorry|so sorry|very sorry]," {hero:he} [said|whispered]<sadly>.

{hero:His} {elder} looked at the [{fragile}|pieces] and [was quiet|said nothing]. //
    Then {elder:he} [smiled|opened {elder:his} arms|sat down with {hero:him}].
{hero:His} {elder} [was not angry|did not shout|only sighed a little].

"[I am glad you told me|It was brave to tell me|Thank you for telling me], {hero!}," {elder:he} said. //
    "[A thing can be mended|We can mend it|Glue can fix almost anything]."
"The truth is [worth more than|dearer to me than] any {fragile}," {elder:he} said, and gave {hero} a <hug>.

So {hero} and {hero:his} {elder} [sat down|sat at the table|took their time] and glued the {fragile} together[, piece by piece|].
They mended the {fragile} with [glue and patience|a lot of glue|steady fingers|paste and string].

?
It had a [thin|crooked|little|zigzag] line down [the side|one side|the middle] now, but {hero} [thought|said that|felt that] it was
    [even more beautiful|prettier than before|dearer than ever].
The {fragile} was [never quite|not quite|no longer] the same, but {hero}'s heart was [light|as light as a feather] again.

The next day, {hero} thanked {friend!}. // "You were right," {hero:he} said, "[the truth is light|it was easy in the end|I can sleep again]."
@end_solo

@the_end
""",
)

RACE = plot(
    "race",
    """
@open_pair

Every [summer|spring|autumn], there was a big race {+place:at}.
<one_day>, there was a [big|great] race {+place:at}[, and everyone came to watch|].
[That very day|The next day], there was a [big|great] race {place:at}[, and everyone came to watch|].

{p} was fast, and {q} was [fast|quick] too. // [Both of them|{p} and {q} both|Each of them] [wanted|hoped] to win {+gift:a}, the first
    prize.
The winner would get {+gift:a}. // "I will win it," said {p}, and {q} said the same.

?
{p} and {q} [trained|practiced] for [days|weeks], [up the hill and down again|around the pond|before breakfast].
"[May the faster one win|Let us both run like the wind]," said {x} to {y!}.
The night before, {hero} [dreamed|could only dream] of the {gift:full}.

?
Before the race, {x} <gave> {+token:a} to {y!} for luck.
While {p} and {q} waited [at the start|in line|for the bell], {x} <gave> {+token:a} to {y!}.
{p} and {q} [tied their shoes|stretched their legs|looked at the crowd]. //
    [Then|Without a word,|With a smile,] {x} <gave> {+token:a} to {y!}[ for luck|].

"[Ready, set, go|One, two, three, go]!" <called> the [baker|mayor|teacher|old fisherman|miller], and {p} and {q} [ran|were off|flew down the path].
A [bell rang|drum rolled|flag went up|whistle blew], and off went {p} and {q} [with all the others|like two arrows|as fast as they could].

?
[They|All of them] ran like [the wind|rabbits|the clouds], and [soon|at once] {hero} was [in front|ahead|in the lead].
Soon {hero} was [past the tree|over the bridge|around the bend] and [ahead of everyone|in the lead].

<suddenly> there was a cry. // {friend} had [tripped|stumbled] [over a root|on a stone] and lay [in the dust|on the ground].
<suddenly> {friend} [slipped|fell] [in the mud|on the wet grass] and could not get up.

{hero} could [see|almost touch] the finish line, but {hero:he} could also hear {friend} [crying|call for help].
{hero} looked at the finish line, and then {hero:he} looked back at {friend}.
[Run on or turn back|Go on or stop]? // {hero} did not have to think for long.

{hero:He} [turned around|stopped|turned back] and ran to {friend!}. // "Are you hurt?" {hero:he} asked<kindly>.
{hero:He} let the others [pass|run by] and [went|hurried] back to {friend!}.

"[Go on|Run|Don't wait], or you will lose," said {friend}<sadly>. //
    "[A friend is better than a prize|I don't mind|Then we will lose together]," <said> {hero}<kindly>.
"[Lean on me|Put your arm around me|Hold on to me]," said {hero} to {friend!}. // "[We will finish together|Step by step]."

So {p} and {q} [limped|walked|hopped] to the finish line, [arm in arm|slowly|step by step].
Together {p} and {q} [crossed|reached|hopped over] the line, and they were [the very last|last of all|the slowest of all].

[But|And] how the people [cheered|clapped]! // They [cheered|clapped] louder for {p} and {q} than for the winner.
Everyone [stood up|jumped up] and [clapped|cheered|threw their hats in the air|stamped their feet] for {p} and {q}.

The winner [came over|smiled] and gave the {gift} to {hero!}. // "This belongs to you," said the winner<kindly>.
The [mayor|baker] gave the {gift} to {hero}, and {hero} gave it to {friend!}.
{p} and {q} did not get the {gift}, but they got [two warm buns|the loudest cheer of all|a big round of hugs].

@end_pair

@the_end
""",
)

PLOTS = (LOST, SHARE, GIFT, STUCK, TRUTH, RACE)
