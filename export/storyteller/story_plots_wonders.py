"""Plots about discoveries: a key, an animal with a strange name, someone from far away, a song, a way home."""

from __future__ import annotations

from story_beats import plot

KEY = plot(
    "key",
    """
@open

@likes

?
{hero:His} friend {+friend} lived next door [and came over every day|and was just as curious].

<one_day>, {hero} [came to|stood before|found] the {+lock} {lock:where}, but it was [locked|locked tight|shut].
[For years|For a long time|For many years], the {+lock} {lock:where} had been locked. // {hero} had always wanted to look inside.
{hero} had [often|always|long] wondered about the {+lock} {lock:where}, but it was [always locked|locked].

?
First {hero} [pushed|pulled|knocked], but the {lock} did not [open|move].
{p} pushed and {q} pulled, but the {lock} did not [open|move].
What could be [inside|hidden there|behind it|in there]? // {hero} [thought of|dreamed of] [gold|dragons|books|a tiger|a sleeping king] and could hardly wait.

So {hero:he} [went to|ran to] {hero:his} {+elder}. //
    "[Please, where|Where] is the [little key|old key|key] to the {lock}?" {hero:he} asked.
"[Where is|Do you have|Do you know where to find] the [little key|old key|key] to the {lock}?" asked {hero}, and {hero:his} {+elder} [looked up|put down the newspaper|stopped knitting|let the soup wait].

"The key is in the {+box:full}," <said> {hero:his} {elder}, "and the {+tool} is in the {+box2:full}."
"The {+tool} is in the {+box2:full}," <said> {hero:his} {elder}, "and the key is in the {+box:full}."
{hero:His} {elder} [smiled|laughed|winked|thought for a moment]. //
    "[Look in the kitchen|Go to the kitchen|They are in the kitchen]. The key is in the {+box:full}. The {+tool} is in the {+box2:full}."
"You will need two things," <said> {hero:his} {elder}. //
    "There is the {+tool} in the {+box2:full}, and the key is in the {+box:full}."

?
{hero} [said|sang|whispered] it over and over so [that {hero:he} would|as to] not forget [it|a word].
"[Be careful|Take good care of it|Bring it back|Don't mix them up], {hero!}," {elder:he} [said|added]<kindly>.
{hero} thanked {elder:him} and [ran off|hurried off].

In the [kitchen|big kitchen|quiet kitchen] stood the {box} and the {box2}, [side by side|one beside the other|just as {elder:he} had said].
In the kitchen, {hero} [saw|found] the {box2} [next to|near|behind] the {box}.
There was the {box2}, and there was the {box}, [just as {hero:his} {elder} had said|both of them closed].

[First|So] {hero} [looked for|went for|wanted] the key and [quickly opened|opened] the {box!}.
{hero} [wanted|needed] the key [first|first of all], and so {hero:he} [quickly opened|opened] the {box!}.
To [get|find|fetch] the key, {hero} [quickly opened|slowly opened|opened] the {box!}.

There [it was|lay the key], [small and shiny|cold and heavy|as bright as gold|on a red ribbon|wrapped in a cloth|under a pile of
    letters|next to a button].
The key was [small|old|cold|heavy] and [shiny|bright|pretty|thin], [with a ribbon on it|just as {hero:he} had hoped|and it smelled
    of apples].
"Here it is," [said|whispered] {hero}<gladly>.

?
First {friend} held the key up to the light and gave it back to {hero!}.
{hero} showed the key to {friend}. // "[Quick|Come on], let's go," said {friend}<gladly>.

[In the lock, the|The] key turned with a [click|creak|squeak|groan], and [slowly the {lock}|the {lock}] [opened|swung open|let {hero:him} in].
{hero} put the key in the lock. // [Click|Creak|Clack]! // The {lock} was open.

But {hero} needed the {tool}, because {tool:need}. // So {hero:he} [ran|went|hurried] back and [quickly opened|opened] the {box2!}.
But where was the {tool}? // {hero} [ran|went|hurried] back to [get|fetch] it from the {box2!}, because {tool:need}.
But first {hero} [ran|went|hurried] back for the {tool}, because {tool:need}, and [quickly opened|opened] the {box2!}.

[Then|Now] {hero} [looked|peeked|stepped|tiptoed] inside and [saw|found] {lock:inside}.
With the {tool} [in {hero:his} arms|beside {hero:him}], {hero} [went|stepped] inside. // There {hero:he} [saw|found] {lock:inside}.
And what [was inside|was hidden there|was waiting inside|did {hero} see]? // It was {lock:inside}!

?
"[Oh|Wow|Look]! It is [wonderful|beautiful|the best secret ever]," said {hero}<gladly>.
{hero} <was_glad>, and {hero:his} eyes [shone|were as big as plates].
"I kept it for you[, until you were big enough|], {hero!}," said {hero:his} {elder}<kindly>.

{hero} put the key back in the {box!}[, where it belonged|], and every <weekday> {hero:he} took it out again.
<evening>, {hero} put the {tool} back in the {box2!} and the key back in the {box!}.
<forever>, it was the [secret|secret place|favorite secret] of {hero} and {hero:his} {elder}.
@end_solo

@the_end
""",
)

PET = plot(
    "pet",
    """
@open

{hero:He} had a [little|small|young|funny|clever] {+pet:kind}, and its name was {+pet}.
{hero:He} had a [little|small|young|funny|clever] {+pet:kind} named {+pet}.
For {hero:his} birthday, {hero:he} got a [little|tiny|young] {+pet:kind} and named it {+pet}.
One [rainy|windy] night, a little {+pet:kind} had come to the door, and {hero} called it {+pet}.

{pet!} was a [funny|strange|rare] name, but the {pet:kind} [liked it|came whenever {pet:he} heard it].
[Where {hero} went, {pet!} went too|{hero} and {pet} did everything together|Every morning, {pet!} woke {hero} with a wet nose].
"{pet!}," {hero} would say, "you are the best {pet:kind} in the world."

<one_day>, {hero} took {pet} to {+place}.
<one_day>, {hero} and {pet} <went> to {+place}[ to play|].

@air

[There|Soon] {pet} saw [a butterfly|a bright leaf|a hopping frog|a fat bee] and ran after it, [farther and farther|faster and
    faster|around the corner].
But when {hero} [stopped to tie a shoe|looked at the clouds|talked to a neighbor], {pet} ran [off|away|after a butterfly].
[There was a loud bang|A cart rattled by|Thunder rolled], and {pet} was so scared that {pet:he} ran away.

"{pet}! {pet!}! Where are you?" <called> {hero}.
"{pet}, come back!" <called> {hero}, but there was no {pet!}.
{hero} called, "{pet}! {pet!}!" // [Nothing moved|Only the wind answered|But it stayed quiet].

{hero} <was_sad>. // What if {pet} was [lost|hungry|cold|all alone]?
{hero} looked {+spot2}, but {pet!} was not there.
{hero} ran [up and down|left and right|from tree to tree|back and forth], and {hero:his} heart was [heavy|pounding|as heavy as lead].

<just_then>, {hero:his} friend {+friend} came by. // "<problem>?" asked {friend}<kindly>.
Then {hero} met {hero:his} friend {+friend}. // "<problem>, {hero!}?" asked {friend}<kindly>.

"{pet!} ran away," <said> {hero}, "and now I [can't find {pet:him}|don't know where {pet:he} is]."
"My {pet:kind} is gone. {pet:His} name is {pet!}," <said> {hero}<sadly>.

"[That is a fine name|What a name]. {pet!}, {pet!}, {pet!}," said {friend}. // "Let's call [it|the name] together."
"Then we will both call," said {friend}<kindly>. // "One, two, three: {pet}!"
"Sit [still|quietly] and listen," said {friend}<kindly>. // "Maybe {pet!} is afraid of the noise."

[Then|All at once] they heard a [tiny|soft|small] [sound|noise], and {friend} pointed. // Something moved {+spot}.
<at_last>, {friend} saw [two bright eyes|a tail|two ears] {+spot}.
They [looked|searched] [everywhere|high and low]. // <at_last>, something moved {+spot}.

"{pet!}!" cried {hero}, and the {pet:kind} [jumped|ran|hopped] [right into|straight into|into] {hero:his} arms.
It [was|really was] {pet!}! // The {pet:kind} [shook|was wet and tired], but {pet:he} was [safe|not hurt].
There sat {pet!}, [with leaves on {pet:his} head|with mud on {pet:his} nose|as happy as could be].

?
Gently, {friend} picked up the {pet:kind} and gave {pet:him} to {hero!}.
Luckily, {friend} had {+treat:a} and gave it to {hero!}, who gave [half|a bite] of it to {pet!}.

"Thank you, {friend!}," said {hero}<gladly>. // "[I was so afraid|I would never have found {pet:him} alone]."
{hero} [laughed and cried|cried and laughed] [at the same time|at once|all at once]. // "[Never|Don't ever] run [away|off] again, {pet!}," {hero:he} said<kindly>.

<evening>, {pet!} [slept|snored softly|lay] at the foot of {hero}'s bed.
<evening>, the {pet:kind} lay [close to {hero}|in {hero}'s lap|on {hero}'s pillow]. // "Good night, {pet!}," whispered {hero}.
<forever>, {hero} had only to call "{pet!}" once, and the {pet:kind} came running.
{hero}, {friend} and {pet} went home <sky>, and {pet!} [did not run off even once|stayed very close].

@the_end
""",
    animals=False,
)

NEWCOMER = plot(
    "newcomer",
    """
@open

@likes

<one_day>, someone new came to {+place}.
<one_day>, {hero} <went> to {+place} and saw [a new face|someone new].

The [stranger|new one] sat [apart|alone|all alone] <seat> and [did not speak|looked at the ground].
Nobody [knew|talked to|played with] the new one, who sat <seat> [and waited|all alone|and drew in the dust|and counted clouds].
The others [whispered|stared|looked away|went on playing], but no one [went over|said hello|smiled|made room].

{hero} [remembered|knew] how it feels to be [new|alone|shy], so {hero:he} [went over|walked over] and said hello.
"[Nobody should be alone|I would like to have a friend there]," thought {hero}, and {hero:he} went over.
{hero} was a little shy too, but {hero:he} [took a deep breath|counted to three] and [went over|said hello].

"[Hello|Hi], I am {hero!}. What is your name?" asked {hero}<kindly>. // "My name is {+newcomer}," said the new one<sadly>.
"[Hello|Hi], my name is {hero!}," said {hero}<kindly>. // "I am {+newcomer}, and I come from {+newcomer:from}."

"{newcomer!}," said {hero} slowly. // "{newcomer!}, {newcomer!}. I like [how it sounds|that name]."
{hero} had never heard such a name. // {hero:He} said it three times so as not to forget it: {newcomer!}, {newcomer!}, {newcomer!}.
"Is it {newcomer!}?" asked {hero}. // "Yes, {newcomer!}," <said> {newcomer}, and for the first time {newcomer:he} smiled.

?
"Where are you from, {newcomer!}?" asked {hero}<kindly>. // "From {+newcomer:from}," <said> {newcomer}<sadly>.

?
"Nobody here knows [me|my games]," said {newcomer}, and {newcomer:he} <looked_sad>.
"I miss my old home," said {newcomer}<sadly>.
{newcomer} <was_sad>, because everything was so new.

"[Then come and play with us|Do you want to play with me|Come, I will show you everything]," said {hero}<kindly>.
{hero} had {+toy:a} and gave it to {newcomer!}. // "[You can go first|You try it|Let's take turns]," said {hero}<kindly>.
{hero} had {+treat:a} and gave half of it to {newcomer!}.

{newcomer} [knew|taught them|showed them] a game that no one [had seen before|there knew]. //
    It was [a game with|played with] [stones and a circle|three hats|a rope and a song|shadows].
{newcomer} could [whistle like a bird|walk on two hands|juggle three apples|draw a horse with one line].
{newcomer} knew the [funniest|best] [riddles|songs|stories], [and everyone listened|one after another].

Then {hero:his} friend {+friend} came over. // "Who is that?" asked {friend}.
{hero:His} friend {+friend} [came closer|stopped playing|ran over]. // "Who is your new friend?" asked {friend}.

"This is {newcomer!}," said {hero}<gladly>. // "Hello, {newcomer!}," <said> {friend}<kindly>.
"That is {newcomer!}," said {hero}<gladly>. // {friend} tried to say it, and [soon|in the end] it was right: "{newcomer!}!"

{newcomer} [taught|showed] {p} and {q} [something new|a secret song|a trick], and [soon|in the end] everyone [joined in|laughed].
{p}, {q} and {newcomer} played until [the sun went down|it was dark|they were called home].

?
{newcomer} had {+trinket:a} from {newcomer:from} and gave it to {hero!}.
Before they went home, {newcomer} gave {+trinket:a} to {hero!}.
<evening>, {hero} told {hero:his} {+elder} about {newcomer!}.
"See you tomorrow, {newcomer!}," <called> {hero} [at the gate|at the corner|from the hill].

{newcomer} walked home and [hummed|smiled|sang], and [nothing felt strange any more|the new town felt like home].
<forever>, {hero}, {friend} and {newcomer!} [were friends|played together every day|were never far apart].
And soon everyone {place:at} [could say|knew] the name {newcomer!}.
And whenever someone new [came|stood there alone], it was {newcomer!} who [went over first|was the first to say hello|smiled first].

@the_end
""",
)

SONG = plot(
    "song",
    """
@open

@likes

[Every night|Each evening], {hero:his} {+elder} sang [{hero:him} a little song|a song to {hero:him}|an old song]. //
    "{+word:Word}, {word!}, {+verse}," {elder:he} sang.
{hero:His} {+elder} knew a [very old|little|secret] song. // It went like this: "{+word:Word}, {word!}, {+verse}."
{hero:His} {+elder} had taught {hero:him} a [very old|little|secret] song: "{+word:Word}, {word!}, {+verse}."

"What does {word!} mean?" asked {hero}. //
    "It means [do not be afraid|I am near|all will be well]," <said> {hero:his} {elder}<kindly>.
Nobody knew what {word!} meant, but it [felt warm|sounded kind|made the dark smaller].
{hero} loved the word {word!}, and {hero:he} [hummed|sang|said] it [all day|in the bath|to the cat|on the swing].

<one_day>, {hero} <went> to {+place} with {hero:his} friend {+friend}.
<one_day>, {hero} and {hero:his} friend {+friend} <went> to {+place} to [look for berries|pick flowers|gather wood].

@gives

<suddenly> a [thick|white|gray] fog came [down|up], and {p} and {q} could not see the [path|way].
{p} and {q} [walked|went] too far, and when they [turned around|looked back|stopped], they did not know [the way|the road] [home|back].
The sky grew [dark|dim|gray], and to {p} and {q} [all the paths|all the trees|all the hills] looked [the same|alike|strange].

"We are lost," said {friend}, and {friend:he} began to [cry|shake|sniff].
"Which way is home?" asked {friend}<sadly>.
{friend} [took hold of {hero}'s sleeve|held on to {hero}]. // "I am [scared|afraid]," {friend:he} whispered.

{hero} was [scared|afraid] too, but then {hero:he} [remembered|thought of] the song.
{hero} thought of {hero:his} {elder}, and [then|at once|suddenly] {hero:he} knew [what to do|what would help].

[Softly|In a tiny voice|Quietly], {hero:he} began to sing: "{word:Word}, {word!}, {verse!}."
"{word:Word}, {word!}, {verse!}," sang {hero}[ softly|], and {hero:his} voice [shook only a little|grew stronger].

"[Sing with me|Now you too], {friend!}," said {hero}. // And they sang together: "{word:Word}, {word!}, {verse!}."
{friend} [listened|stopped crying|wiped {friend:his} eyes]. // Then {friend:he} sang too: "{word:Word}, {word!}, {verse!}."
The song made {p} and {q} [feel warm|less afraid], and they sang it [again and again|louder and louder|seven times].

Far away, someone [heard|answered]. // "{word:Word}, {word!}, {verse!}," came a voice through the [trees|dusk|mist].
<at_last>, {p} and {q} heard a voice [far away|in the distance|behind the hill], and it [sang the same song|sang back|answered]: "{word:Word}, {word!}, {verse!}."

It was {hero}'s {elder}, with a [lantern|lamp|bright lantern] [in the dark|held high|and a warm coat|and three blankets].
{p} and {q} followed the song, [step by step|slowly|hand in hand], until they saw a [lantern|lamp] in the [dark|mist].

?
"I [heard you sing|knew your voice|followed the song], {hero!}," said {hero:his} {elder}, and [hugged|kissed|held] them both.
{hero:His} {elder} wrapped {p} and {q} in a [big|warm] coat and [laughed|cried|kissed them] with joy.
{hero:His} {elder} gave {+treat:a} to {hero}, and {hero} gave half of it to {friend!}.

<evening>, when {friend} was [safe in bed|home again], {friend:he} [hummed|whispered] one word: {word!}.
<forever>, {p} and {q} had a secret word, and the word was {word!}.
And when you are [lost|afraid] some day, [remember|try] the song: "{word:Word}, {word!}, {verse!}."
<evening>, {hero} asked for the song once more. //
    "{word:Word}, {word!}, {verse!}," sang {hero:his} {elder}, and {hero} fell asleep.

@the_end
""",
)

WAY = plot(
    "way",
    """
@open

@likes

<one_day>, {hero} <went> to {+place} to [pick berries|look for mushrooms|collect leaves] for {hero:his} {+elder}.
<one_day>, {hero} followed [a butterfly|a blue bird|a little stream|a rolling nut] [past|beyond] the last house and [on and on
    |far away].
<one_day>, {hero:his} {+elder} sent {hero:him} [to the mill|to the farm|to the village] with {+treat:a}.

@air

[But|But soon] the path [grew narrow|split in two|disappeared], and {hero} [was lost|did not know the way any more].
When {hero} looked up, [nothing looked the same|every tree was strange], and it was getting [dark|late].

?
{hero:He} sat down <seat> and [cried a little|tried to be brave|put {hero:his} head on {hero:his} knees].
"[Which way is home|How will I get home|Is anybody there]?" <called> {hero}, but [nobody answered|there was no one].

Then something [moved|rustled|blinked] [in the leaves|in the dark|above {hero}|behind a root]. // It was a [little|small|young|sleepy|gray]
    {+guide:kind}.
<just_then>, a [little|small|young|sleepy|gray] {+guide:kind} [came out of the leaves|appeared|looked down at {hero:him}].

"[Good evening|Hello|Do not cry]. My name is {+guide}," said the {guide:kind}<kindly>. //
    "[Are you lost|Why are you here all alone]?"
"I am {+guide}," said the {guide:kind}<kindly>. // "[I know every path here|I have lived here all my life|You look lost]."

"{guide!}," said {hero}, "can you [show me|tell me] the way home?"
"Please, {guide!}, help me," said {hero}<sadly>. // "I want to go home."

{guide} [thought for a moment|nodded|smiled]. // "First go past {+mark}, and then go around {+mark2}."
"It is not far," <said> {guide}. // "Go first to {+mark}, and from there to {+mark2}."
"Listen well," <said> {guide}. // "First comes {+mark}, and then comes {+mark2}. After that, you can see your house."

?
"First {mark!}, then {mark2!}," said {hero}, so as not to forget it.
{hero} said it twice: first {mark!}, then {mark2!}.

{hero} [gave|handed] {+trinket:a} to {guide!} [to say thank you|as a present] and set off.
"Thank you, {guide!}," said {hero}, and [off {hero:he} went|{hero:he} set off at once].
{guide} [gave|handed] {+trinket:a} to {hero!} for luck, and {hero} set off.

[Soon|And there it was]: {hero:he} came to {mark!}.
First {hero:he} went past {mark!}, [just as {guide!} had said|and {hero:his} heart beat faster].
After a [short|long] walk, {hero} saw {mark!}, and {hero:he} [was glad|took heart].

?
It was [dark|cold] now, and an [old branch|odd bush] looked like a [giant|dragon|bear]. // But {hero} thought of {guide!} and went on.
The wind [howled|sighed], and {hero} [sang|whistled|hummed] to be brave.

Next {hero} went around {mark2!}, and [there was|{hero:he} saw|far off shone] a [small|yellow|warm] light [in the distance|behind the trees].
Then {hero} [reached|found] {mark2!}. // From there {hero:he} could [see|make out] [a light|a lamp|smoke from a chimney|a red roof].

It was {hero}'s own [house|door|street], and [the door was open|the door opened wide|someone was calling {hero:his} name|supper was on the table].
It was home! // {hero}'s family [came running|stood at the door|had waited and waited|was out with lamps], and [everyone laughed
    |nobody was angry|there was hot soup].

?
"Where have you been?" they asked. // "{guide!} showed me the way," <said> {hero}, and {hero:he} told them everything.
{hero} told them about {guide!}, [and they listened with open mouths|and nobody laughed|over a bowl of hot soup].

<forever>, {hero} [often|always] left [a few nuts|some berries|a bowl of milk] at the edge of the trees for {guide!}.
And sometimes, when the moon is [full|bright], {hero} [looks out|waves from the window] and says, "Good night, {guide!}."
The next day, {hero} went back to thank {guide!}. // First came {mark!}, then came {mark2!}, and there sat {guide!}.
@end_solo

@the_end
""",
)

RESCUE = plot(
    "rescue",
    """
@open

@likes

<one_day>, {hero} and {hero:his} friend {+friend} <went> to {+place}.
<one_day>, {hero} met {hero:his} friend {+friend} {+place:at}.

@air

@gives

<suddenly> they heard a [tiny|soft|thin|sad] [cry|sound]. // {p} and {q} [stopped|listened|looked around].
"[Hush|Listen|Wait]! Do you hear that?" asked {x}. // Someone was [crying|calling|whimpering], [very softly|not far away].

{p} and {q} [looked around|followed the sound] and found {+beast:a} that {+trouble}.
[Behind a hedge|By a ditch|Near the path], {p} and {q} saw {+beast:a} that {+trouble}.

?
The {beast} looked at {p} and {q} with [big|dark|frightened] eyes, and its [heart beat fast|little body shook].
"[Poor little thing|Oh dear]! We must help it," said {x}<sadly>.
"[Don't be afraid|We will help you], little {beast}," said {x}<kindly>.

"But [how|what can we do], {x!}?" asked {y}. // {x} [looked at it|thought about it|walked around it] [from all sides|for a moment|twice].
{y} wanted to pull, but {x} did not let go. // "[Slowly|Gently]," said {x}, "or it will hurt."
"[Wait here|Stay with it]," said {p}, and ran to get [help|a lamp|a rope]. // {q} [sang to|stayed with] the {beast} until {p!} came back.

{x} {trouble:rescue} while {y} [talked to the {beast}|spoke softly|held the {beast} still].
{x} {trouble:rescue}, and {y} [held on tight|counted to three|helped with both hands].

[One more moment|One last pull|A little more], and the {beast} was [free|safe]!
<at_last>, the {beast} was [free|safe].
It took [a long time|all their strength|a great while], but [then|in the end|at last] the [little {beast}|{beast}] was [free|safe].

But it was too [tired|weak] to go away. // {x} wrapped it in a [scarf|sweater] and gave the {beast} to {y!}.
It was [thirsty|hungry], so {p} gave it some milk, and {q} [sang to it|sat beside it|stroked its back].
It was cold, so {p} warmed it with a scarf, and {q} [sang to it|sat beside it|stroked its back].
"It needs something to eat," said {p}, and gave {+treat:a} to {q!}. // {q} fed it to the {beast}, crumb by crumb.

{p} and {q} put it in {+box:a} with [soft hay|a warm blanket|dry leaves] and [let it sleep|let it rest|gave it some food].

[The next morning|After three days|A week later], the {beast} was [well|strong] again. //
    {hero} opened the {box!}, and out it [hopped|jumped|came].
[By the next morning|After three days], the {beast} was [well|strong] again, and {p} and {q} opened the {box!}.

?
{p} and {q} let it go {place:at}, [and it looked back once|and it ran around them twice].
At the edge of the [grass|trees|path] it [stopped|turned|sat up] and looked back at {p} and {q}, as if to [say thank you|wave|say
    good-bye].
{x} was [sad for a moment|a little sad|almost sad], but {y} said, "[It is happy now|It has a family too|It will not forget us]."

?
The next day, there was {+find:a} on the doorstep. // "That is from the {beast}," said {hero}, and gave it to {friend!}.
A week later, {p} and {q} saw it again, and [it was not alone|it had three little ones with it].

<forever>, the {beast} came to visit [every spring|now and then|on quiet evenings].
And when {p} and {q} [walked by|came by], something small [rustled|ran along] beside them.
@end_pair

@the_end
""",
)

PLOTS = (KEY, PET, NEWCOMER, SONG, WAY, RESCUE)
